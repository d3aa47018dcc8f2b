"""R5: failing open does not fell the upstream. Redis is dead, and ten times as much as usual is asked."""

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import pytest

from tests.faults.observed import settings
from tests.faults.workload import HEADERS, PATH, question
from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers
from tests.support.gate import Gate
from tests.support.open_loop import Outcome, Report, run_open_loop
from tests.support.ports import PortReservation
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawResponse, ask
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until
from tests.vendor_sim import answer as vendor_answer

MIB = 2**20
RIGHT = vendor_answer("text-embedding-v4", ["x"], request_id="r", dimension=64)
THROTTLED = b'{"code":"Throttling","message":"slow down","request_id":"r"}'


@dataclass
class Vendor:
    """Answers after *latency_s*; counts what it has at once, and refuses what is beyond its *capacity*."""

    capacity: int
    latency_s: float
    now: int = 0
    most: int = 0
    calls: int = 0

    async def __call__(self, request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        is_over = self.now > self.capacity
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.now -= 1
        answer = answers.respond_json(THROTTLED, 429) if is_over else answers.respond_json(RIGHT)
        await answer(request, writer)


async def metric(proxy: ProxyProcess, name: str) -> float:
    """The sum of a metric's samples."""
    text = await asyncio.to_thread(proxy.metrics)
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


async def flood(proxy: ProxyProcess, name: str, rate: float, duration_s: float) -> tuple[Report, list[str | None]]:
    """Texts that were never asked, each answered right or refused by us; and the Retry-After of those refused."""
    retry_after: list[str | None] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(proxy.http_url, connector=connector, headers=HEADERS) as session:

        async def call(index: int) -> Outcome:
            async with session.post(PATH, data=question(f"{name} {index}")) as response:
                body = await response.read()
            if response.status == 503 and b'"UpstreamBusy"' in body:
                retry_after.append(response.headers.get("Retry-After"))
                return Outcome(correct=False, error="busy")
            return Outcome(response.status == 200, None if response.status == 200 else f"HTTP {response.status}")

        return await run_open_loop(call, rate, duration_s=duration_s), retry_after


async def overload(limit: int, latency_s: float, usual: float, duration_s: float, queue_wait_s: float) -> str:
    """Ten times the usual; the figures."""
    vendor = Vendor(limit, latency_s)
    env = settings(upstream_max_inflight=limit, upstream_queue_wait_s=queue_wait_s)
    with contextlib.closing(PortReservation()) as nobody:
        async with (
            RawUpstream(vendor) as upstream,
            ProxyProcess(dashscope_url=upstream.url, redis_url=f"redis://127.0.0.1:{nobody.port}/0", env=env) as proxy,
        ):
            rig = WireRig(upstream, proxy)
            report, _ = await flood(proxy, "usual", usual, 1.0)
            assert not report.errors, report.summary()
            before, usual_calls = rig.rss_bytes(), vendor.calls
            report, retry_after = await flood(proxy, "flood", 10 * usual, duration_s)
            refused = report.errors["busy"]

            assert vendor.most <= limit
            assert set(report.errors) == {"busy"}, report.summary()
            assert refused > report.count / 4
            # Each was asked for once, and what was refused not at all.
            assert vendor.calls - usual_calls == report.count - refused
            assert retry_after == ["1"] * refused
            assert rig.rss_bytes() - before <= 100 * MIB
            assert await metric(proxy, "dashcache_upstream_refused_total") == refused
            lines = [line for line in proxy.logs if line.get("detail") == "UpstreamBusy"]
            assert {(line["state"], line["status"]) for line in lines} == {("refused", 503)}
            # By the proxy's clock, as the load's runs late. The wait in line is the promise, the rest for the machine.
            latest_s = max(line["total_ms"] for line in lines) / 1000
            assert latest_s <= queue_wait_s + 2.0
            print(f"\n{report.summary()}")
            return (
                f"{report.count} calls at {10 * usual:g}/s: at most {vendor.most} of {limit} at the upstream; "
                f"{refused} refused, none later than {latest_s:.2f} s"
            )


async def test_r5_the_upstream_has_never_more_than_the_limit_and_the_excess_is_told_soon(
    record_property: Callable[[str, object], None],
) -> None:
    record_property("figure", await overload(limit=8, latency_s=0.05, usual=40, duration_s=5, queue_wait_s=0.25))


@pytest.mark.slow
async def test_r5_in_full(record_property: Callable[[str, object], None]) -> None:
    record_property("figure", await overload(limit=100, latency_s=0.5, usual=40, duration_s=60, queue_wait_s=1.0))


# --- the same in single steps -----------------------------------------------------------------------------------------


def refused(response: RawResponse) -> bool:
    """Whether this is our word that the upstream is busy."""
    return (response.status, response.header("Retry-After"), response.header("X-Dashcache-Error")) == (
        503,
        b"1",
        b"UpstreamBusy",
    )


async def test_a_full_line_is_told_at_once_and_a_place_in_it_is_worth_something() -> None:
    held = Gate("upstream")
    options = {"UPSTREAM_MAX_INFLIGHT": "1", "UPSTREAM_MAX_QUEUE": "1", "UPSTREAM_QUEUE_WAIT_S": "30"}
    async with wire_rig(**{f"DASHCACHE_{name}": value for name, value in options.items()}) as rig:
        rig.upstream.answer = answers.after(held, answers.respond(b"fine"))
        port = rig.proxy.http_port
        first = asyncio.ensure_future(ask(port, "GET", "/first"))
        await held.wait_arrived()
        second = asyncio.ensure_future(ask(port, "GET", "/second"))
        await wait_until(lambda: metric(rig.proxy, "dashcache_upstream_queue"), what="one in line")
        assert await metric(rig.proxy, "dashcache_upstream_inflight") == 1
        assert refused(await ask(port, "GET", "/third"))
        held.open()
        assert [(await response).body for response in (first, second)] == [b"fine", b"fine"]
        assert rig.upstream.executions() == {b"/first": 1, b"/second": 1}


async def test_a_slot_is_held_until_the_answer_is_read_or_given_up() -> None:
    rest = Gate("rest of the body")
    options = {"UPSTREAM_MAX_INFLIGHT": "1", "UPSTREAM_QUEUE_WAIT_S": "0.05"}
    async with wire_rig(**{f"DASHCACHE_{name}": value for name, value in options.items()}) as rig:
        port = rig.proxy.http_port
        for is_read in (True, False):
            rig.upstream.answer = answers.chunked(b"begun", rest)
            async with await rig.client() as client:
                await client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.reader.readuntil(b"begun\r\n")
                assert refused(await ask(port, "GET", "/meanwhile"))
                if is_read:
                    rest.open()
                    await client.reader.readuntil(b"0\r\n\r\n")
                    rest.close()
                else:
                    client.abort()
            rig.upstream.answer = answers.respond(b"fine")

            async def free() -> bool:
                return (await ask(port, "GET", "/afterwards")).body == b"fine"

            await wait_until(free, what="the slot to be free again")
        rest.open()


async def test_what_is_sent_again_goes_first_in_line() -> None:
    options = {"UPSTREAM_MAX_INFLIGHT": "1", "UPSTREAM_QUEUE_WAIT_S": "30"}
    gates = {target: Gate(target.decode()) for target in (b"/again", b"/first", b"/second")}
    seen: list[bytes] = []

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        seen.append(request.target)
        await gates[request.target].wait()
        how = (
            answers.reset() if seen.count(b"/again") == 1 and request.target == b"/again" else answers.respond(b"fine")
        )
        await how(request, writer)

    async with wire_rig(**{f"DASHCACHE_{name}": value for name, value in options.items()}) as rig:
        rig.upstream.answer = answer
        asking = []
        for waiting, target in enumerate((b"/again", b"/first", b"/second")):
            asking.append(asyncio.ensure_future(ask(rig.proxy.http_port, "GET", target.decode())))
            if not waiting:
                await gates[target].wait_arrived()

            async def in_line(wanted: int = waiting) -> bool:
                return await metric(rig.proxy, "dashcache_upstream_queue") == wanted

            await wait_until(in_line, what="its place in line")
        gates[b"/again"].open()  # its connection ends without a word, and the next one's turn has come
        await gates[b"/first"].wait_arrived()
        await wait_until(in_line, what="the one that was sent already, in line again")
        gates[b"/first"].open()
        gates[b"/second"].open()
        assert [(await response).body for response in asking] == [b"fine"] * 3
        assert seen == [b"/again", b"/first", b"/again", b"/second"]


async def test_websockets_take_slots_and_failures_give_them_back() -> None:
    options = {"UPSTREAM_MAX_INFLIGHT": "1", "UPSTREAM_QUEUE_WAIT_S": "0.05"}
    async with wire_rig(**{f"DASHCACHE_{name}": value for name, value in options.items()}) as rig:
        for answer, status in (
            (answers.reset(), 502),
            (answers.raw(b"nonsense\r\n\r\n"), 502),
            (answers.respond(b"no", 403), 403),
        ):
            rig.upstream.answer = answer
            assert (await ask(rig.proxy.http_port, "POST", "/x", body=b"y")).status == status
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                    await session.ws_connect(rig.proxy.http_url + "/ws")
                assert caught.value.status == status
        rig.upstream.answer = answers.respond(b"fine")
        assert (await ask(rig.proxy.http_port, "GET", "/x")).body == b"fine"


async def test_a_flush_reaches_the_upstream_at_its_pace() -> None:
    options = {"UPSTREAM_REQUESTS_PER_MINUTE": "600", "UPSTREAM_QUEUE_WAIT_S": "10"}
    async with wire_rig(**{f"DASHCACHE_{name}": value for name, value in options.items()}) as rig:
        replies = await asyncio.gather(*(ask(rig.proxy.http_port, "GET", f"/{number}") for number in range(25)))
        assert {response.status for response in replies} == {200}
        at = sorted(request.arrived_at for request in rig.upstream.requests)
        # Ten of a second's worth at once, the others a tenth of a second apart; a busy machine only makes it slower.
        assert at[-1] - at[0] >= 1.4
