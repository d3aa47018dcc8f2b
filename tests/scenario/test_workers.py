"""``GET /v1/workers`` and ``dashcache workers``: each worker is asked, and one that does not answer holds nobody up."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support import answers
from tests.support.child import send_signal
from tests.support.proxy_process import ROOT, ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream
from tests.support.waiting import wait_until

TARGET = "/api/v1/services/embeddings/text-embedding/text-embedding"
OK = b'{"output":{"embeddings":[{"text_index":0,"embedding":[0.5]}]},"usage":{"total_tokens":1},"request_id":"r"}'
TEXT = b'{"model":"text-embedding-v4","input":{"texts":["small"]}}'
CREDENTIAL = [(b"Authorization", b"Bearer k")]


async def asked(proxy: ProxyProcess) -> Any:
    return (await asyncio.to_thread(proxy.admin, "GET", "/v1/workers")).json()


async def command(proxy: ProxyProcess, *options: str) -> tuple[int, str]:
    line = [sys.executable, "-m", "proxy", "workers", "--admin", proxy.admin_url, *options]
    ran = await asyncio.to_thread(subprocess.run, line, env=proxy.env, cwd=ROOT, capture_output=True, text=True)
    assert not ran.stderr, ran.stderr
    return ran.returncode, ran.stdout


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    assert send_signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(pid, signal.SIGCONT)


async def test_each_worker_tells_how_it_does() -> None:
    held = asyncio.Event()

    async def answer(request: Any, writer: asyncio.StreamWriter) -> None:
        if request.target == b"/held":
            await held.wait()
        await answers.respond_json(OK)(request, writer)

    async with RawUpstream(answer) as upstream, ProxyProcess(dashscope_url=upstream.url, workers=1) as proxy:
        async with (
            await RawClient.connect(proxy.http_port) as client,
            await RawClient.connect(proxy.http_port) as other,
        ):
            assert (await client.post(TARGET, TEXT, CREDENTIAL)).status == 200
            waiting = asyncio.ensure_future(other.request("GET", "/held"))
            await wait_until(lambda: len(upstream.requests) == 2)
            document = await asked(proxy)
            held.set()
            await waiting
        (worker,) = document.pop("workers")
        assert document == {"wanted": 1}
        assert [worker["pid"]] == proxy.worker_pids()
        assert worker["worker"] == 1
        assert worker["answers"] is True
        assert worker["age_s"] > 0
        assert worker["connections"] == 2
        assert worker["requests"] == 1
        assert worker["upstream_requests"] == {"dashscope": 1}
        assert worker["memory"]["entries"] == 1
        assert worker["memory"]["bytes"] > 0
        assert worker["loop_lag_ms"] >= 0
        assert worker["held_bytes"] == 0
        assert worker["breaker"] == "closed"


async def test_a_worker_that_hangs_makes_the_answer_partial_and_one_that_died_too() -> None:
    async with (
        RawUpstream(answers.respond_json(OK)) as upstream,
        ProxyProcess(dashscope_url=upstream.url, workers=2) as proxy,
    ):
        first, second = sorted(proxy.worker_pids())
        with stopped(first):
            told = {each["pid"]: each["answers"] for each in (await asked(proxy))["workers"]}
            assert told == {first: False, second: True}
            status, shown = await command(proxy)
            assert status == 1
            assert "does not answer" in shown
            dying = asyncio.ensure_future(asked(proxy))
            await asyncio.sleep(0)  # it may be asked before the kill or after it: both are right
            assert send_signal(first, signal.SIGKILL)
            assert {each["pid"] for each in (await dying)["workers"]} <= {first, second, *proxy.worker_pids()}

        async def all_answer() -> bool:
            return [each["answers"] for each in (await asked(proxy))["workers"]] == [True, True]

        await wait_until(all_answer)
        status, shown = await command(proxy)
        assert status == 0
        assert [line.split()[0] for line in shown.splitlines()] == ["worker", "1", "2"]
        status, shown = await command(proxy, "--json")
        assert (status, shown[:1]) == (0, "{")
