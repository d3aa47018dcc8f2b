"""wrk, its scripts and what it says; and single requests one after the other, for what a crowd would hide."""

import re
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import litellm
from benchmarks.peers.content import OPENAI_TARGET, TARGET, TEXTS, body, openai_body, text
from benchmarks.peers.machine import LOAD_CORES

PROGRAM = shutil.which("wrk")
LINES = {"Content-Type": "application/json", "Authorization": "Bearer sk-benchmark"}
"""Header lines of every request."""


@dataclass(frozen=True)
class Load:
    """What wrk found: requests a second, and latencies in milliseconds."""

    per_s: float
    p50_ms: float
    p99_ms: float
    requests: int


def scripts(folder: Path) -> dict[str, Path]:
    """
    Wrk's scripts by name, written to *folder*.

    ``repeat``: the same bytes again and again; ``new``: each with an id of its own; ``ten``: ten texts at a time;
    ``openai``, ``litellm``: single ones in the compatible dialect; ``get`` and ``large``: what only passes.
    """
    lines = _table(LINES)
    bodies = ",".join(f"[[{body([text(at)]).decode()}]]" for at in range(TEXTS))
    tens = ",".join(f"[[{body([text(at + each) for each in range(10)]).decode()}]]" for at in range(0, TEXTS, 10))
    openai = ",".join(f"[[{openai_body([text(at)]).decode()}]]" for at in range(TEXTS))

    def repeat(asked: str, target: str = TARGET, lines: str = lines) -> str:
        made = f'wrk.format("POST","{target}",lines,bodies[k])'
        ready = f"init=function() for k=1,#bodies do ready[k]={made} end end"
        again = "request=function() n=n%#bodies+1 return ready[n] end"
        return f"local bodies,ready,n={{{asked}}},{{}},0\nlocal lines={{{lines}}}\n{ready}\n{again}"

    own = f'{{{lines},["X-Request-Id"]=tostring(n)}}'
    new = f"local bodies,n={{{bodies}}},0\n"
    made = f'wrk.format("POST","{TARGET}",lines,bodies[k])'
    new += f"request=function() n=n+1 local k,lines=n%#bodies+1,{own} return {made} end"
    texts = {
        "repeat": repeat(bodies),
        "ten": repeat(tens),
        "openai": repeat(openai, OPENAI_TARGET),
        "litellm": repeat(openai, "/v1/embeddings", _table({**LINES, "Authorization": f"Bearer {litellm.KEY}"})),
        "new": new,
        "get": 'wrk.path="/api/v1/tasks/one"',
        "large": 'wrk.path="/large"',
    }
    for name, said in texts.items():
        (folder / f"{name}.lua").write_text(said)
    return {name: folder / f"{name}.lua" for name in texts}


def _table(lines: dict[str, str]) -> str:
    return ",".join(f'["{name}"]="{value}"' for name, value in lines.items())


def wrk(port: int, script: Path, *, seconds: float, connections: int = 64, cores: str = LOAD_CORES) -> Load:
    """
    Load on *port* from two threads (one, for one connection), pinned to *cores*.

    Raises:
        RuntimeError: a request failed, or was answered with an error.
    """
    assert PROGRAM is not None
    threads = min(2, connections)
    command = ["taskset", "-c", cores, PROGRAM, f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    said = subprocess.run(
        [*command, "--latency", "--timeout", "20s", "-s", str(script), f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"(\d+) requests in", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if found is None or rate is None:
        raise RuntimeError(f"wrk said: {said}")
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.findall(r"(?:connect|read|write|timeout) (\d+)", said)
    errors = int(wrong.group(1) if wrong else 0) + sum(map(int, broken))
    if errors:
        raise RuntimeError(f"wrk said: {said}")
    return Load(float(rate.group(1)), _latency_ms(said, "50%"), _latency_ms(said, "99%"), int(found.group(1)))


def _latency_ms(said: str, share: str) -> float:
    value, unit = re.findall(rf"{share}\s+([\d.]+)(us|ms|s)", said)[0]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1_000.0}[unit]


def one_by_one_ms(port: int, bodies: Iterable[bytes], target: str = TARGET) -> list[float]:
    """How long each of *bodies* took on one connection; all must be answered with 200."""
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "127.0.0.1", **LINES}.items())
    took = []
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for content in bodies:
            asked = f"POST {target} HTTP/1.1\r\n{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
            began = time.perf_counter()
            line.sendall(asked)
            _read_answer(line)
            took.append((time.perf_counter() - began) * 1000)
    return took


def _read_answer(line: socket.socket) -> None:
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _some(line)
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not answered well: {data[:200]!r}")
    found = re.search(rb"(?i)content-length: (\d+)", data[:end])
    if found is None:
        raise RuntimeError("an answer without a length")
    left = end + 4 + int(found.group(1)) - len(data)
    while left > 0:
        left -= len(_some(line))


def _some(line: socket.socket) -> bytes:
    data = line.recv(262_144)
    if not data:
        raise RuntimeError("the connection ended")
    return data


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[98]
