"""The channel: settings arrive whole, switches are confirmed, and its end means drain."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from proxy.control.channel import (
    Channel,
    Confirmed,
    Drain,
    Hello,
    Ready,
    SetModes,
    SetPurges,
    ToSupervisor,
    WorkerControl,
    settings_from_json,
    settings_to_json,
    supervisor_end,
    worker_end,
)
from proxy.control.live import LiveModes
from proxy.core.grace import Cause
from proxy.core.listening import Port
from proxy.core.modes import Mode, Rule
from proxy.core.purges import Mark
from proxy.runtime.tasks import Tasks
from proxy.settings.model import GraceRule, Listen, ModelRule, Redis, Settings, Start, UpstreamRule
from proxy.settings.types import SecretText


@dataclass
class Pair:
    supervisor: Channel[ToSupervisor]
    control: WorkerControl
    drained_within_s: list[float]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    supervisor, channel = await supervisor_end(ours), await worker_end(theirs)
    drained: list[float] = []
    control = WorkerControl(channel, LiveModes(Start()), 30.0, drained.append)
    tasks = Tasks(lambda _: None)
    control.start(tasks)
    yield Pair(supervisor, control, drained)
    supervisor.close()
    await tasks.wait_done(5)
    channel.close()


def test_settings_arrive_whole_with_their_secrets() -> None:
    settings = Settings(
        key_secret=SecretText("key-canary-of-the-test"),
        redis=Redis(url=SecretText("redis://:password-canary@localhost/0")),
        data_dir=Path("/data"),
        listen=Listen(admin_token=SecretText("token-canary"), certificate=Path("/c.pem"), key=Path("/k.pem")),
        grace=GraceRule(if_error_for=(Cause.TIMEOUT,)),
        models={"m": ModelRule(ttl_s=1.5)},
        start=Start(operations={"embedding": Mode.SHADOW}),
        upstreams=(
            UpstreamRule(name="us", url="us", hosts=("us.example",)),
            UpstreamRule(name="v", vendor="dashvector", url="https://v", grpc_listen="127.0.0.1:1"),
        ),
        dashvector_url="https://cluster.example",
        dashscope_url="international",
    )
    assert settings_from_json(settings_to_json(settings)) == settings


async def test_a_worker_is_told_its_ports_and_its_number() -> None:
    ports = (Port("http", "", "127.0.0.1", 8080), Port("grpc", "dashvector", "::1", 50051))
    ours, theirs = socket.socketpair()
    supervisor, worker = await supervisor_end(ours), await worker_end(theirs)
    supervisor.send(Hello(2, 4, msgspec.Raw(b"{}"), ports, b"secret", None, ()))
    hello = await worker.receive()
    assert isinstance(hello, Hello)
    assert (hello.worker, hello.workers, hello.ports) == (2, 4, ports)
    assert [port.address for port in hello.ports] == ["127.0.0.1:8080", "[::1]:50051"]
    supervisor.close()
    worker.close()


async def test_a_switch_is_in_force_when_it_is_confirmed(pair: Pair) -> None:
    pair.supervisor.send(SetModes(7, (Rule(Mode.BYPASS, set_unix_s=1.0, until_unix_s=4e9),)))
    assert await pair.supervisor.receive() == Confirmed(7)
    assert pair.control.modes.mode("dashscope", "embedding") is Mode.BYPASS


async def test_a_purge_is_in_force_when_it_is_confirmed(pair: Pair) -> None:
    pair.supervisor.send(SetPurges(8, (Mark("ab" * 16, 1.0, model="模型"),)))
    assert await pair.supervisor.receive() == Confirmed(8)
    assert pair.control.purges.tokens_for("dashscope", "embedding", "模型", ()) == (b"\xab" * 16,)


async def test_ready_is_reported(pair: Pair) -> None:
    await pair.control.ready()
    assert await pair.supervisor.receive() == Ready()


async def test_told_to_drain(pair: Pair) -> None:
    pair.supervisor.send(Drain(2.5))
    await pair.control.wait_drain()
    assert pair.control.drain_s == 2.5
    assert pair.drained_within_s == [2.5]


async def test_a_supervisor_that_has_gone_means_drain(pair: Pair) -> None:
    pair.supervisor.close()
    await pair.control.wait_drain()
    assert pair.drained_within_s == [30.0]


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"\xff\n", b'{"type":"unknown"}\n', b'{"type":"modes","version":"x"}\n']
)
async def test_nonsense_counts_as_the_end(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = await worker_end(theirs)
    ours.sendall(line)
    assert await channel.receive() is None
    ours.close()
    channel.close()


async def test_sending_to_who_has_gone_does_nothing() -> None:
    ours, theirs = socket.socketpair()
    channel = await supervisor_end(ours)
    theirs.close()
    assert await channel.receive() is None
    channel.send(Drain(1))
    await asyncio.sleep(0)
    channel.close()
    channel.send(Drain(1))
