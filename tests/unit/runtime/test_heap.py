"""A worker's heap: what is free in the middle of it does not stay."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import proxy.worker.build
from proxy.control.channel import WorkerControl
from proxy.control.live import LiveModes
from proxy.runtime import heap
from proxy.settings.model import Settings, Start
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]

HOLES = """
import asyncio, re
from pathlib import Path
from proxy.runtime import heap

def resident_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

async def main():
    blocks = [bytes(bytearray(b"1" * 20_000)) for _ in range(5_000)]
    del blocks[::2]
    before = resident_mib()
    heap.EVERY_S = 0.01
    giving = asyncio.ensure_future(heap.give_back())
    async with asyncio.timeout(10):
        while before - resident_mib() < 30:
            await asyncio.sleep(0.01)
    giving.cancel()
    print(before - resident_mib(), len(blocks))

asyncio.run(main())
"""


@pytest.mark.skipif(heap._TRIM is None, reason="the C library has no malloc_trim")
def test_holes_in_the_heap_are_given_back() -> None:
    """Of 48 MB in blocks of 20,000 bytes, nearly all but the pages at both ends of each."""
    ran = subprocess.run(
        [sys.executable, "-c", HOLES],
        cwd=ROOT,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        check=True,
        capture_output=True,
    )
    given_mib, left = map(float, ran.stdout.split())
    assert left == 2_500
    assert given_mib >= 30


async def test_what_takes_long_is_done_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    took_s = iter([0.0005, 0.05, 0.0005])
    now_s = [0.0]

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    def trim(_pad: int) -> None:
        now_s[0] += next(took_s)

    monkeypatch.setattr(heap, "_TRIM", trim)
    monkeypatch.setattr(heap, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(heap, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    with pytest.raises(asyncio.CancelledError):
        await heap.give_back()
    assert pauses == pytest.approx([10.0, 10.0, 50.0, 10.0])


async def test_a_worker_does_it_as_long_as_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[bool] = []

    async def give_back() -> None:
        running.append(True)
        try:
            await asyncio.sleep(3_600)
        finally:
            running.append(False)

    monkeypatch.setattr(proxy.worker.build, "give_back", give_back)
    channel = SimpleNamespace(send=lambda _: None)
    control = WorkerControl(channel, LiveModes(Start()), 0.0, lambda _: None)  # type: ignore[arg-type]
    serving = asyncio.ensure_future(
        proxy.worker.build.serve_worker(Settings(data_dir=tmp_path), (), b"x" * 32, None, control)
    )
    await wait_until(lambda: running == [True])
    control.drain(0.0)
    await asyncio.wait_for(serving, 10)
    assert running == [True, False]
