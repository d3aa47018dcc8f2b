"""
How many instructions a hit and a miss take, counted by callgrind and held against ``budget.toml``: no clock is quiet.

``python -m benchmarks.instructions``: 1 if one takes more than its budget and the tolerance; ``--write`` records what
was found. Requests go through the server's own connection objects with nothing in the place of a socket, logging and
metrics as in production; the upstream, in the same process, has its answers ready. Python's own work is most of it, so
budgets hold for one version of Python.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

BUDGET = Path(__file__).with_name("budget.toml")
_COUNTED = {"repeated": 1_000, "parsed": 1_000, "miss": 200}
_WARM = 50
"""So many misses go before those that are counted: a worker's first ones cost more."""
_TOLERANCE = 1.10
_PATIENCE_S = 240.0


# --- the workload -----------------------------------------------------------------------------------------------------


class _Line(asyncio.Transport):
    """In the place of a client's connection: takes what is written, and counts it."""

    answers = 0
    answered: asyncio.Event | None = None

    def write(self, data: Any) -> None:  # noqa: ARG002
        self.answers += 1
        if self.answered is not None:
            self.answered.set()

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


async def _workload() -> None:
    """Answer hits, phase by phase, each when a line comes on standard input; says when it is done."""
    from benchmarks.peers.content import TARGET, answer, body, text  # noqa: PLC0415
    from proxy.control.live import LiveModes  # noqa: PLC0415
    from proxy.core.listening import Port  # noqa: PLC0415
    from proxy.settings.model import Settings  # noqa: PLC0415
    from proxy.telemetry import log_output  # noqa: PLC0415
    from proxy.telemetry.observer import Observer  # noqa: PLC0415
    from proxy.worker import build, ports  # noqa: PLC0415

    # The upstream's own work is not what is to be counted.
    prepared = {asked: answer(asked) for number in range(_WARM + _COUNTED["miss"]) if (asked := body([text(number)]))}

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                asked = await reader.readexactly(length)
                content = prepared.get(asked) or answer(asked)
                kind = b"Content-Type: application/json\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (kind, len(content)) + content)
        writer.close()

    server = await asyncio.start_server(upstream, "127.0.0.1", 0)
    origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = Settings(dashscope_url=origin, data_dir=Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    log_output.configure(settings.log, "worker-1", os.open(os.devnull, os.O_WRONLY))
    async with build.built(settings, b"secret", None, LiveModes(settings.start), Observer.of(settings)) as worker:
        port = await ports.listen(settings, worker.front, Port("http", "", "127.0.0.1", 0))
        line, connection = _Line(), port.server()
        connection.connection_made(line)
        content = body([text(0)])

        def request(more: bytes = b"", content: bytes = content) -> bytes:
            head = b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Type: application/json\r\nAuthorization: Bearer b\r\n"
            return head % (TARGET.encode(), more) + b"Content-Length: %d\r\n\r\n" % len(content) + content

        async def ask(data: bytes) -> None:
            before = line.answers
            connection.data_received(data)
            while line.answers == before:  # noqa: ASYNC110  the turns of the loop are what is to be counted
                await asyncio.sleep(0)

        async def miss(number: int) -> None:
            line.answered = asyncio.Event()
            connection.data_received(request(content=body([text(number)])))
            await line.answered.wait()  # and not turn by turn: nobody can say how many turns a socket takes

        for _ in range(200):  # what comes singly within a window is over then
            await ask(request())
            await asyncio.sleep(0)
        for phase, count in _COUNTED.items():
            for number in range(1, _WARM if phase == "miss" else 1):
                await miss(number)
            print("ready", flush=True)
            sys.stdin.readline()
            for number in range(count):
                if phase == "miss":
                    await miss(_WARM + number)
                else:
                    await ask(request(b"X-Request-Id: %d\r\n" % number) if phase == "parsed" else request())
            print("done", flush=True)
            sys.stdin.readline()
        await port.cleanup()
    server.close()


# --- counting ---------------------------------------------------------------------------------------------------------


def counted(valgrind: str, control: str) -> dict[str, int]:
    """Instructions per request, by phase."""
    with tempfile.TemporaryDirectory(prefix="dashcache-") as folder:
        out = Path(folder, "out")
        command = [valgrind, "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", "-q"]
        child = subprocess.Popen(
            [*command, sys.executable, "-m", "benchmarks.instructions", "--workload"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=BUDGET.parents[1],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder, "PYTHONHASHSEED": "0"},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        found = {}
        try:
            for number, phase in enumerate(_COUNTED, 1):
                _expect(child, "ready")
                _control(control, "--instr=on", child.pid)
                _control(control, "--zero", child.pid)
                child.stdin.write("go\n")
                child.stdin.flush()
                _expect(child, "done")
                _control(control, "--dump", child.pid)
                _control(control, "--instr=off", child.pid)
                found[phase] = _total(Path(f"{out}.{number}")) // _COUNTED[phase]
                child.stdin.write("go on\n")
                child.stdin.flush()
            child.wait(_PATIENCE_S)
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
        return found


def _expect(child: "subprocess.Popen[str]", word: str) -> None:
    assert child.stdout is not None
    said = child.stdout.readline().strip()
    if said != word:
        raise RuntimeError(f"the workload said {said!r} and not {word!r}")


def _control(control: str, what: str, pid: int) -> None:
    subprocess.run([control, what, str(pid)], check=True, capture_output=True, timeout=_PATIENCE_S)


def _total(dump: Path) -> int:
    for line in dump.read_text().splitlines():
        if line.startswith(("summary:", "totals:")):
            return int(line.split()[1])
    raise RuntimeError("callgrind has written no total")


def main() -> int:
    """Count, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="record what is found as the budget")
    parser.add_argument("--workload", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.workload:
        asyncio.run(_workload())
        return 0
    valgrind, control = shutil.which("valgrind"), shutil.which("callgrind_control")
    version = ".".join(platform.python_version_tuple()[:2])
    if valgrind is None or control is None:
        print("instructions: not counted, valgrind is not installed")
        return 0
    found = counted(valgrind, control)
    if given.write:
        lines = "".join(f"{phase} = {count}\n" for phase, count in found.items())
        BUDGET.write_text(f'# Instructions per request; see benchmarks/instructions.py.\npython = "{version}"\n{lines}')
        return 0
    budget = tomllib.loads(BUDGET.read_text())
    if budget["python"] != version:
        print(f"instructions: {found}, not judged: the budget is Python {budget['python']}'s")
        return 0
    for phase, count in found.items():
        print(f"instructions, {phase}: {count:,} (budget {budget[phase]:,})")
    return int(any(count > budget[phase] * _TOLERANCE for phase, count in found.items()))


if __name__ == "__main__":
    sys.exit(main())
