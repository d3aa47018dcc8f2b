"""
One real proxy process in front of one raw upstream, for a whole module. Used by the tests of what goes over the wire.

The upstream lives on the module's event loop, so modules that use it say ``asyncio(loop_scope="module")``.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

FRAMING = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class WireRig:
    """The upstream, the proxy before it, and what most tests do with the two."""

    upstream: RawUpstream
    proxy: ProxyProcess

    async def client(self) -> RawClient:
        """A connection to the data port."""
        return await RawClient.connect(self.proxy.http_port)

    async def renew(self) -> None:
        """As after a start: no connection, no record, and an upstream that answers 200 without a body."""
        self.upstream.drop_connections()
        await wait_until(lambda: self.upstream.connections_open == 0, what="the upstream's connections to close")
        self.forget()
        self.upstream.connections.clear()
        self.upstream.answer = answers.respond()
        self.upstream.on_head = None

    def forget(self) -> None:
        """Drop the records, keep the connections."""
        self.upstream.requests.clear()
        self.upstream.incomplete.clear()
        self.upstream.malformed.clear()

    def only_request(self) -> RecordedRequest:
        """The one request that came, whole and well-formed."""
        assert not self.upstream.malformed
        assert not self.upstream.incomplete
        (request,) = self.upstream.requests
        return request

    def upstream_bytes(self) -> bytes:
        """Every byte that reached the upstream, over all connections."""
        return b"".join(bytes(connection.received) for connection in self.upstream.connections)

    def rss_bytes(self, *, peak: bool = False) -> int:
        """Resident memory of the only worker; *peak* is the most since `forget_peak`."""
        (pid,) = self.proxy.worker_pids()
        field = "VmHWM:" if peak else "VmRSS:"
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    def forget_peak(self) -> None:
        """Let the peak of `rss_bytes` start at what is resident now."""
        (pid,) = self.proxy.worker_pids()
        Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextlib.asynccontextmanager
async def wire_rig(**options: str) -> AsyncIterator[WireRig]:
    """A rig whose proxy has these environment variables; its upstream stands for both vendors."""
    async with (
        RawUpstream(answers.respond()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, dashvector_url=upstream.url, env=options) as proxy,
    ):
        yield WireRig(upstream, proxy)


def by_name(headers: Iterable[tuple[bytes, bytes]], *without: bytes) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """
    Lines grouped by lower-case name, in order within each: all that RFC 9110 §5.3 lets anybody rely on.

    Without the one line that the proxy adds to each request; ``tests/faults/test_r20_loops.py`` looks at that.
    """
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for name, value in headers:
        if name.lower() not in (*without, b"cdn-loop"):
            found.setdefault(name.lower(), []).append((name, value))
    return found
