"""C17 with real processes: what was switched off stays off when a later switch ends."""

import asyncio
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from proxy.cli import main
from tests.faults.observed import settings
from tests.faults.workload import Workload
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.vendor_sim import ProcessSim


async def operate(proxy: ProxyProcess, *arguments: str) -> str:
    """One command of an operator's at *proxy*; what it printed."""
    command = [*arguments, "--admin", proxy.admin_url]
    result = await asyncio.to_thread(CliRunner().invoke, main, command)
    assert result.exit_code == 0, result.output
    return result.output


async def wait_ended(proxy: ProxyProcess, **fields: Any) -> dict[str, Any]:
    return await asyncio.to_thread(proxy.wait_log, "mode_ended", **fields)


async def test_c17_a_bypass_that_was_switched_off_does_not_come_back(
    redis_server: RedisServer, sim: ProcessSim
) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, workers=2, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        await operate(proxy, "bypass", "on", "--operation", "embedding")
        assert not any(reply.is_cached for reply in await load.ask_all())
        await operate(proxy, "bypass", "off")
        said = await operate(proxy, "bypass", "on", "--for", "3s", "--reason", "vendor incident")
        assert "dashscope embedding: bypass" in said
        ended = await wait_ended(proxy, reason="vendor incident")
        assert (ended["now"], ended["level"]) == ("on", "info")
        assert all(reply.is_cached for reply in await load.ask_all())
        (in_force,) = proxy.modes()["rules"]
        assert (in_force["mode"], in_force["until_unix_s"]) == ("on", None)
        modes = await asyncio.to_thread(proxy.mode, "bypass", for_s=600, reason="shown")
        (in_force,) = modes["rules"]
        assert (in_force["mode"], in_force["operation"], in_force["by"]) == ("bypass", "*", "127.0.0.1 without token")
        assert 599 < in_force["until_unix_s"] - in_force["set_unix_s"] < 601
        assert [(rule["mode"], rule["operation"]) for rule in modes["waiting"]] == [("on", "*")]
        assert "shown" in await operate(proxy, "stats")


async def test_c17_replicas_and_restarts_follow_the_last_word_too(
    redis_server: RedisServer, sim: ProcessSim, tmp_path: Path
) -> None:
    shared = {"dashscope_url": sim.url, "redis_url": redis_server.url, "key_secret": "s" * 32}
    one_options = {**shared, "data_dir": tmp_path / "one"}
    async with ProxyProcess(**one_options) as one, ProxyProcess(**shared, data_dir=tmp_path / "other") as other:
        await operate(one, "mode", "shadow")
        await operate(one, "bypass", "on", "--operation", "embedding")
        await asyncio.to_thread(other.wait_log, "mode_taken_over", operation="embedding")
        await operate(other, "bypass", "off")
        await asyncio.to_thread(one.wait_log, "mode_taken_over", mode="on")
        await operate(other, "bypass", "on", "--for", "4s", "--reason", "ends while one is away")
        await asyncio.to_thread(one.wait_log, "mode_taken_over", reason="ends while one is away")
        await asyncio.to_thread(one.kill)
        await wait_ended(other, reason="ends while one is away", now="on")
        assert other.modes()["effective"]["dashscope"]["embedding"] == "on"
        async with ProxyProcess(**one_options) as again:
            assert again.modes()["effective"]["dashscope"]["embedding"] == "on"
            await wait_ended(again, reason="ends while one is away", now="on")
            assert again.modes()["waiting"] == []
