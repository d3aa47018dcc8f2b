"""Without REDIS_URL the proxy starts a redis-server of its own: it may die, the proxy may die, workers may die."""

import asyncio
import signal
from pathlib import Path

from tests.faults.observed import events, settings, stats
from tests.faults.workload import Workload
from tests.support.child import ProcessInfo, descendants, process_info, send_signal
from tests.support.proxy_process import ProxyProcess
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

SECRET = "the same for both runs, and long enough"

QUIET = {
    *("embedded_redis_ended", "redis_breaker_open", "redis_breaker_closed"),
    *("redis_not_usable", "redis_usable", "redis_went_back"),
}
"""The words that may be logged of its end: after an unclean one nothing that a write can make stale is believed."""


def _redis_of(proxy: ProxyProcess) -> ProcessInfo | None:
    found = [info for info in descendants(proxy.pid) if "redis-server" in " ".join(info.command)]
    return found[0] if found else None


def _are_gone(processes: list[ProcessInfo]) -> bool:
    now = [(known, process_info(known.pid)) for known in processes]
    return all(late is None or late.state == "Z" or late.started_ticks != known.started_ticks for known, late in now)


def _sockets(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_socket()]


def _tcp_lines(pid: int) -> list[str]:
    """The TCP sockets of a process, as /proc lists them."""
    inodes = {str(link.readlink())[8:-1] for link in Path(f"/proc/{pid}/fd").iterdir()}
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[9] in inodes]


async def test_the_embedded_redis_listens_on_a_unix_socket_only(sim: ProcessSim, data_dir: Path) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, data_dir=data_dir, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        told = await stats(proxy)
        assert (told["redis"]["kind"], told["redis"]["ok"]) == ("embedded", True)
        child = _redis_of(proxy)
        assert child is not None
        (socket,) = _sockets(data_dir)
        assert socket.stat().st_mode & 0o077 == 0
        assert not _tcp_lines(child.pid)


async def test_r1_a_killed_embedded_redis_is_restarted_and_invisible(sim: ProcessSim) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, workers=2, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        before = len(proxy.logs)
        async with load.running(rate=100, duration_s=3.0) as running:
            await running.until(0.7)
            child = _redis_of(proxy)
            assert child is not None
            send_signal(child.pid, signal.SIGKILL)
            killed_s = running.now_s

        report = running.report
        assert not report.errors, report.summary()
        assert report.correct == report.count == 300
        assert report.between(0.0, killed_s).cached > 20, report.summary()
        assert report.between(2.0).cached > 20, report.summary()
        after = _redis_of(proxy)
        assert after is not None
        assert after.pid != child.pid
        assert events(proxy, before)["embedded_redis_ended"] == 1
        assert not set(events(proxy, before)) - QUIET
        told = await stats(proxy)
        assert told["redis"]["ok"] is True
        assert told["breaker"]["state"] == "closed"


async def test_entries_survive_a_restart_of_the_proxy(sim: ProcessSim, data_dir: Path) -> None:
    options = {"dashscope_url": sim.url, "data_dir": data_dir, "key_secret": SECRET, "env": settings()}
    async with ProxyProcess(**options) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        assert await asyncio.to_thread(proxy.stop) == 0
        assert proxy.left_behind == []
    asked = sim.stats["requests"]
    async with ProxyProcess(**options) as proxy, Workload(proxy.http_url) as load:
        assert all(reply.is_cached for reply in await load.ask_all())
    assert sim.stats["requests"] == asked


async def test_nothing_is_left_after_sigterm(sim: ProcessSim, data_dir: Path) -> None:
    async with ProxyProcess(dashscope_url=sim.url, data_dir=data_dir, workers=2) as proxy:
        family = descendants(proxy.pid)
        assert len(family) >= 3
        assert await asyncio.to_thread(proxy.stop) == 0
        assert proxy.left_behind == []
        assert _are_gone(family)
        assert not _sockets(data_dir)


async def test_after_a_kill_of_the_supervisor_all_end_and_a_new_start_works(sim: ProcessSim, data_dir: Path) -> None:
    options = {"dashscope_url": sim.url, "data_dir": data_dir, "key_secret": SECRET, "env": settings()}
    async with ProxyProcess(workers=2, **options) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        family = descendants(proxy.pid)
        send_signal(proxy.pid, signal.SIGKILL)
        await wait_until(lambda: _are_gone(family), 15.0, "workers and Redis to end")
    async with ProxyProcess(workers=2, **options) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        assert (await stats(proxy))["redis"]["ok"] is True


async def test_a_new_start_does_not_wait_for_the_end_of_a_killed_one(sim: ProcessSim, data_dir: Path) -> None:
    options = {"dashscope_url": sim.url, "data_dir": data_dir, "key_secret": SECRET, "env": settings()}
    async with ProxyProcess(**options) as killed:
        send_signal(killed.pid, signal.SIGKILL)
        async with ProxyProcess(**options) as proxy, Workload(proxy.http_url) as load:
            await load.warm_up()


async def test_everything_killed_at_once_costs_hits_only(sim: ProcessSim, data_dir: Path) -> None:
    options = {"dashscope_url": sim.url, "data_dir": data_dir, "key_secret": SECRET, "env": settings()}
    async with ProxyProcess(**options) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        proxy.kill()
    async with ProxyProcess(**options) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()


async def test_a_killed_worker_is_replaced(sim: ProcessSim) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, workers=2, env=settings(memory_max_bytes=2**20)) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.ask_all()
        counted = (await stats(proxy))["operations"]["embedding"]["requests"]
        assert counted == len(load.texts)
        first, second = proxy.worker_pids()
        async with load.running(rate=100, duration_s=3.0) as running:
            await running.until(0.7)
            send_signal(first, signal.SIGKILL)
            killed_s = running.now_s
            await wait_until(
                lambda: second in (pids := proxy.worker_pids()) and len(pids) == 2 and first not in pids,
                what="another worker",
            )

        report = running.report
        # Requests on the dead one's connections break; nobody else's do, and no wrong answer comes.
        assert not any("wrong" in error or "HTTP" in error for error in report.errors), report.summary()
        assert report.between(0.0, killed_s - 0.1).errors.total() == 0, report.summary()
        assert report.between(killed_s + 0.5).errors.total() == 0, report.summary()
        assert report.errors.total() <= 10, report.summary()

        # What the dead one had counted is not lost.
        async def both_serve() -> bool:
            return bool((await stats(proxy))["workers"] == {"serving": 2, "wanted": 2})

        await wait_until(both_serve, 30.0, "both workers to serve")
        told = await stats(proxy)
        requests = told["operations"]["embedding"]["requests"]
        assert counted + report.correct <= requests <= counted + report.count


async def test_a_worker_that_dies_again_and_again_does_not_stop_the_other(sim: ProcessSim) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, workers=2, env=settings(memory_max_bytes=2**20)) as proxy,
        Workload(proxy.http_url) as load,
    ):
        steady = proxy.worker_pids()[0]
        async with load.running(rate=50, duration_s=3.0) as running:
            for _ in range(3):
                others = [pid for pid in proxy.worker_pids() if pid != steady]
                for pid in others:
                    send_signal(pid, signal.SIGKILL)
                gone = {steady, *others}
                await wait_until(lambda gone=gone: set(proxy.worker_pids()) - gone, what="its successor")  # type: ignore[misc]
        assert running.report.correct >= running.report.count - 15, running.report.summary()
        await wait_until(lambda: len(proxy.worker_pids()) == 2, 10.0, "both workers")
        assert steady in proxy.worker_pids()
        assert proxy.ready()
