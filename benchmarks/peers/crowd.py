"""
Many clients at once, each served in its turn: for how long the last of them wait, where wrk cannot be asked.

From 256 connections on, wrk leaves some of them waiting for a hundred milliseconds with any server, nginx included.
``python -m benchmarks.peers.crowd PORT CONNECTIONS SECONDS`` is one process of clients; it writes the latencies (s) of
all its requests, as float32.
"""

import array
import asyncio
import re
import subprocess
import sys
import time
from typing import cast

import uvloop

from benchmarks.peers.content import TARGET, TEXTS, body, text
from benchmarks.peers.load import LINES
from benchmarks.peers.machine import LOAD_CORES, python

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")


def latencies_ms(port: int, connections: int, seconds: float) -> list[float]:
    """
    How long each request took, from so many connections, in a process on each of the cores for load.

    Raises:
        RuntimeError: a request was not answered well.
    """
    cores = LOAD_CORES.split(",")
    command = python("benchmarks.peers.crowd", str(port), str(connections // len(cores)), str(seconds))
    children = [subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.PIPE) for core in cores]
    took = array.array("f")
    said = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError("a request was not answered well")
    for each in said:
        took.frombytes(each)
    return [took_s * 1000 for took_s in took]


class _Client(asyncio.Protocol):
    """Asks for one text after the other, each when the one before has come."""

    def __init__(self, requests: list[bytes], number: int, took: "array.array[float]") -> None:
        self._requests = requests
        self._number = number
        self._took = took
        self._left: int | None = None
        self._asked_s = 0.0
        self._transport: asyncio.WriteTransport
        self.is_last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is, but does not say so

    def ask(self) -> None:
        self._number = (self._number + 1) % len(self._requests)
        self._left = None
        self._asked_s = time.perf_counter()
        self._transport.write(self._requests[self._number])

    def data_received(self, data: bytes) -> None:
        if self._left is None:
            end = data.find(b"\r\n\r\n")
            length = _LENGTH.search(data, 0, end + 2)
            if length is None or not data.startswith(b"HTTP/1.1 200"):
                sys.exit(f"not answered well: {data[:200]!r}")
            self._left = end + 4 + int(length[1])
        self._left -= len(data)
        if self._left == 0:
            self._took.append(time.perf_counter() - self._asked_s)
            if not self.is_last:
                self.ask()


async def _main(port: int, connections: int, seconds: float) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "127.0.0.1", **LINES}.items())
    head = f"POST {TARGET} HTTP/1.1\r\n{lines}Content-Length: "
    requests = [f"{head}{len(asked)}\r\n\r\n".encode() + asked for asked in (body([text(at)]) for at in range(TEXTS))]
    took = array.array("f")
    clients = [_Client(requests, 7 * at, took) for at in range(connections)]
    for client in clients:
        await asyncio.get_running_loop().create_connection(lambda made=client: made, "127.0.0.1", port)
    for client in clients:
        client.ask()
    await asyncio.sleep(seconds)
    for client in clients:
        client.is_last = True
    sys.stdout.buffer.write(took.tobytes())


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
