"""
Processes that hang without ending, as after SIGSTOP: noticed, said, and replaced, while the others go on serving.

Times are shorter than the real ones, but in the test that is marked slow.
"""

import asyncio
import http.client
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from tests.faults.observed import events, settings, wait_event
from tests.faults.workload import Workload
from tests.support.child import children, process_state, send_signal
from tests.support.impatient_proxy import PATIENCE
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

IMPATIENT = (sys.executable, "-m", "tests.support.impatient_proxy")
REPLACES, REPORTS, WAITS = "0.1 0.5 1.5", "0.1 2 600", "0.5 600 600"
# Of a machine that is busy with other things; only the slow test measures.
PATIENT_S = 60.0


@asynccontextmanager
async def impatient(sim: ProcessSim, patience: str = REPLACES, **options: Any) -> AsyncIterator[ProxyProcess]:
    env = settings() | {PATIENCE: patience} | options.pop("env", {})
    async with ProxyProcess(dashscope_url=sim.url, command=IMPATIENT, env=env, **options) as proxy:
        yield proxy
        await asyncio.to_thread(proxy.stop)
        assert proxy.left_behind == []


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    assert send_signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(pid, signal.SIGCONT)


async def told(proxy: ProxyProcess) -> Any:
    return (await asyncio.to_thread(proxy.admin, "GET", "/healthz")).json()


def redis_pid(proxy: ProxyProcess) -> int:
    (found,) = (info.pid for info in children(proxy.pid) if "redis-server" in " ".join(info.command))
    return found


async def test_r18_a_hung_worker_is_replaced(sim: ProcessSim) -> None:
    async with impatient(sim, workers=2) as proxy, Workload(proxy.http_url) as load:
        hung, well = proxy.worker_pids()
        with stopped(hung):
            await wait_event(proxy, "worker_hung", PATIENT_S)
        await wait_until(lambda: len(proxy.worker_pids()) == 2 and hung not in proxy.worker_pids(), PATIENT_S)
        await wait_until(lambda: proxy.admin("GET", "/healthz").json()["status"] == "healthy", PATIENT_S)
        assert well in proxy.worker_pids()
        assert events(proxy)["worker_hung"] == events(proxy)["worker_ended"] == 1
        assert all(reply.status == 200 for reply in await load.ask_all())


async def test_r18_what_waits_to_be_accepted_is_accepted_by_the_successor(sim: ProcessSim) -> None:
    async with impatient(sim, workers=1) as proxy:
        (hung,) = proxy.worker_pids()
        with stopped(hung):
            async with await RawClient.connect(proxy.http_port) as client:
                await client.send(b"GET /api/v1/tasks/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                await wait_event(proxy, "worker_hung", PATIENT_S)
                assert (await asyncio.wait_for(client.read_response(), PATIENT_S)).status < 500
        assert not proxy.admin("GET", "/healthz").json()["workers"].get("silent")


async def test_r18_all_workers_hung_is_unhealthy_and_heals(sim: ProcessSim) -> None:
    async with impatient(sim, workers=2) as proxy, Workload(proxy.http_url) as load:
        before = proxy.worker_pids()
        for pid in before:
            send_signal(pid, signal.SIGSTOP)
        await wait_until(lambda: not proxy.health(), PATIENT_S, "an unhealthy proxy")
        assert not proxy.ready()
        await wait_until(lambda: len(set(proxy.worker_pids()) - set(before)) == 2 and proxy.ready(), PATIENT_S)
        assert all(reply.status == 200 for reply in await load.ask_all())


async def test_r18_a_hung_worker_is_reported_and_one_that_goes_on_in_time_stays(sim: ProcessSim) -> None:
    async with impatient(sim, REPORTS, workers=2) as proxy:
        hung, _ = before = proxy.worker_pids()
        with stopped(hung):
            await wait_event(proxy, "worker_silent", PATIENT_S)
            degraded = await told(proxy)
            assert (degraded["status"], degraded["workers"]["serving"]) == ("degraded", 1)
            assert degraded["workers"]["silent"] == [proxy.wait_log("worker_silent")["worker"]]
        await wait_event(proxy, "worker_answers_again", PATIENT_S)
        assert (await told(proxy))["workers"] == {"serving": 2, "wanted": 2}
        assert proxy.worker_pids() == before


async def test_r18_a_worker_that_hangs_while_it_drains_is_ended(sim: ProcessSim) -> None:
    async with impatient(sim, workers=1, env={"DASHCACHE_LIMITS_NOTICE_S": "120"}) as proxy:
        (old,) = proxy.worker_pids()
        assert (await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})).status == 200
        with stopped(old):
            await wait_until(lambda: process_state(old) is None, PATIENT_S, "the end of the old worker")
        assert len(proxy.worker_pids()) == 1
        assert proxy.ready()
        send_signal(proxy.pid, signal.SIGINT)  # which waits for no balancer


async def test_r18_an_order_that_a_hung_worker_did_not_confirm_names_it(sim: ProcessSim) -> None:
    async with impatient(sim, WAITS, workers=2) as proxy:
        hung, _ = proxy.worker_pids()
        with stopped(hung):
            switched = await asyncio.to_thread(proxy.mode, "bypass")
            purged = (await asyncio.to_thread(proxy.admin, "POST", "/v1/purge", {"all": True})).json()
        (number,) = switched["workers"]["unconfirmed"]
        assert switched["workers"] == {"confirmed": 1, "serving": 2, "unconfirmed": [number]}
        assert (purged["confirmed"], purged["workers"], purged["unconfirmed"]) == (1, 2, [number])
        assert events(proxy)["order_not_confirmed"] == 2


async def test_r18_a_hung_embedded_redis_is_reported_and_replaced(sim: ProcessSim) -> None:
    async with impatient(sim, "0.2 1 3") as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        hung = redis_pid(proxy)
        with stopped(hung):
            assert (await told(proxy))["status"] == "degraded"
            assert all(reply.status == 200 for reply in await load.ask_all())
            await wait_event(proxy, "embedded_redis_hung", PATIENT_S)
        await wait_until(lambda: proxy.admin("GET", "/healthz").json()["redis"]["ok"], PATIENT_S)
        assert redis_pid(proxy) != hung


async def test_r18_a_machine_that_was_suspended_kills_nobody(sim: ProcessSim) -> None:
    async with impatient(sim, workers=2) as proxy:
        before, redis = proxy.worker_pids(), redis_pid(proxy)
        for pid in (proxy.pid, redis, *before):
            send_signal(pid, signal.SIGSTOP)
        await asyncio.sleep(3.0)  # beyond every limit of this proxy's: time itself is what is tried
        # Whose turn comes first is the scheduler's choice: the worst one.
        send_signal(proxy.pid, signal.SIGCONT)
        for pid in (redis, *before):
            send_signal(pid, signal.SIGCONT)
        await wait_until(proxy.ready, PATIENT_S)
        assert proxy.worker_pids() == before
        assert redis_pid(proxy) == redis
        assert not {"worker_hung", "embedded_redis_hung"} & set(events(proxy))


async def test_r18_while_the_supervisor_hangs_workers_serve_and_health_does_not_answer(sim: ProcessSim) -> None:
    async with impatient(sim, workers=2) as proxy, Workload(proxy.http_url) as load:
        before = proxy.worker_pids()
        with stopped(proxy.pid):
            assert all(reply.status == 200 for reply in await load.ask_all())
            connection = http.client.HTTPConnection(proxy.admin_address, timeout=1.0)
            connection.request("GET", "/healthz")
            with pytest.raises(TimeoutError):
                connection.getresponse()
            connection.close()
        await wait_until(proxy.ready, PATIENT_S)
        assert proxy.worker_pids() == before


@pytest.mark.slow
async def test_r18_at_real_times(sim: ProcessSim, record_property: Any) -> None:
    async with ProxyProcess(dashscope_url=sim.url, workers=2, env=settings()) as proxy:
        hung, redis, began_s, seen_s = proxy.worker_pids()[0], redis_pid(proxy), time.monotonic(), []
        with stopped(hung), stopped(redis):
            for event in ("worker_silent", "worker_hung", "embedded_redis_hung"):
                await wait_event(proxy, event, 40.0)
                seen_s.append(time.monotonic() - began_s)
        await wait_until(proxy.ready, PATIENT_S)
        assert seen_s[0] < 8
        assert seen_s[1] < 18
        assert seen_s[2] < 25
        text = "a hung worker was reported after {:.1f} s and killed after {:.1f} s, a hung Redis after {:.1f} s"
        record_property("figure", text.format(*seen_s))
