"""
Raw bytes against a running proxy: ``python -m tests.fuzz.http_edge --seconds 60``; not guided by coverage.

What came is told by a reader of our own, which is strict. Of that, the upstream must have got nothing twice, nothing
else, and nothing in another order; the client gets its answers in order, or the connection's end, within the limits;
a fresh connection is answered rightly at once, part of it from the cache; and the log holds no traceback.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE
from tests.fuzz.edge_input import drawn
from tests.fuzz.embedding_request import answer_of
from tests.fuzz.oracles import loaded, told
from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers, wire
from tests.support.raw_client import RawClient
from tests.support.recorded import RecordedRequest

LIMITS = {
    "DASHCACHE_LIMITS_HEADER_WAIT_S": "1",
    "DASHCACHE_LIMITS_BODY_IDLE_S": "1",
    "DASHCACHE_LIMITS_KEEPALIVE_S": "1",
}
_PATIENCE_S = 15.0
_CONTROL = b"X-Fuzz-Control"
_EMBEDDINGS = {NATIVE.path.encode(): False, COMPATIBLE.path.encode(): True}


@dataclass(frozen=True, slots=True)
class Came:
    """A request that the strict reader found."""

    method: bytes
    target: bytes
    body: bytes

    @property
    def identity(self) -> tuple[bytes, bytes]:
        """What the upstream must have got of it; an embedding's body may be a smaller one."""
        target = self.target
        if target.startswith(b"http://"):
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        target = target.removesuffix(b"?") if target.count(b"?") == 1 else target
        return target, b"" if target.partition(b"?")[0] in _EMBEDDINGS else self.body


async def read(data: bytes) -> tuple[list[Came], bool]:
    """All whole requests at the start of *data*, and whether that is all of it."""
    found: list[Came] = []
    while data := data.lstrip(b"\r\n"):  # empty lines before a request (RFC 9112 §2.2)
        reader, body = wire.PatientReader(limit=wire.STREAM_LIMIT), wire.Body()
        reader.feed_data(data)
        reader.feed_eof()
        try:
            head = await wire.read_head(reader)
            assert head is not None
            await wire.read_body(reader, wire.request_framing(head), body)
        except wire.WireError:
            return found, False
        # A second blank beside the target is skipped, as RFC 9112 §3 allows.
        method, _, rest = head.start_line.partition(b" ")
        found.append(Came(method, rest.rpartition(b" ")[0].strip(b" "), bytes(body.data)))
        data = data[len(head.raw) + len(body.raw) :]
    return found, True


class Edge:
    """The rig, and what is checked after each input; AssertionError tells what is wrong."""

    def __init__(self, rig: WireRig) -> None:
        self._rig = rig
        rig.upstream.answer = _answer
        self._earlier: list[Came] = []
        self._was_whole = True
        self.inputs = self.answers = self.forwarded = 0

    async def one_input(self, data: bytes, chance: random.Random) -> None:
        """Send *data*, cut anywhere, and judge what follows."""
        came, is_whole = await read(data)
        is_patient = chance.random() < 0.01  # half a request is let go, too; the limit is waited for now and then
        async with await self._rig.client() as client:
            try:
                await _send(client, data, chance)
                is_whole = await self._read_answers(client, came) == len(came) and is_whole
                await client.read_until_closed(_PATIENCE_S if is_patient else 0.01)
            except TimeoutError:
                assert not is_patient, "a connection without progress is not ended"
            except ConnectionError:
                pass
        await self._control(chance)
        self._check_upstream(came, is_whole)
        self._earlier, self._was_whole = came, is_whole
        self.inputs += 1

    async def _read_answers(self, client: RawClient, came: Sequence[Came]) -> int:
        """How many of the requests that *came* got an answer that is no refusal."""
        accepted = 0
        for request in came:
            try:
                response = await client.read_response(method=request.method.decode("latin-1"), timeout=_PATIENCE_S)
            except TimeoutError:
                raise AssertionError("no answer, and no end of the connection") from None
            except ConnectionError:
                break
            self.answers += 1
            accepted += response.status < 400
            echoed = response.header("X-Echo")
            assert echoed in (None, request.identity[0]), "another request's answer"
            assert response.status != 500
            if wire.closes(response.head):
                break
        return accepted

    async def _control(self, chance: random.Random) -> None:
        """A batch on a fresh connection, often partly cached, must get what the vendor says to all of it."""
        path, is_compatible = chance.choice(list(_EMBEDDINGS.items()))
        texts = [str(chance.randrange(400)) for _ in range(chance.randint(1, 6))]
        tree: dict[str, Any] = {"model": "m", "input": texts if is_compatible else {"texts": texts}}
        body = json.dumps(tree).encode()
        async with await self._rig.client() as client:
            lines = [(b"Authorization", b"Bearer sk"), (_CONTROL, b"1"), (b"Connection", b"close")]
            response = await client.post(path.decode(), body, lines)
        assert response.status == 200, response.raw
        answer: Any = loaded(response.body)
        expected: Any = loaded(answer_of(body, is_compatible, None))
        request_id = "id" if is_compatible else "request_id"
        assert told({**answer, request_id: ""}) == told({**expected, request_id: ""})

    def _check_upstream(self, came: Sequence[Came], is_whole: bool) -> None:
        upstream = self._rig.upstream
        sent = [each for each in upstream.requests if each.header(_CONTROL.decode()) is None]
        assert len(upstream.requests) - len(sent) <= 1, "one control request became several"
        self.forwarded += len(sent)
        left = iter(_identities([*self._earlier, *came]))
        for request in sent:
            seen = Came(request.method, request.target, request.body).identity
            assert any(seen == each for each in left), f"the upstream got {seen}, which did not come (so)"
        if is_whole and self._was_whole:
            assert not upstream.incomplete
        broken = [fault for fault in upstream.malformed if not str(fault).startswith("the stream ended")]
        assert not broken, broken
        assert not upstream.failures, upstream.failures
        self._rig.forget()

    def check_log(self) -> None:
        """No fault of ours in the log: neither a traceback nor its short form, an error and where it was raised."""
        faults = [record for record in self._rig.proxy.logs if record.get("level") == "error" or "where" in record]
        assert not faults, faults[:3]
        assert b"Traceback" not in self._rig.proxy.output


def _identities(came: Sequence[Came]) -> list[tuple[bytes, bytes]]:
    return [each.identity for each in came]


async def _send(client: RawClient, data: bytes, chance: random.Random) -> None:
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.choice((0, 0, 1, 2))))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        await client.send(data[start:end])
        if end < len(data):
            await asyncio.sleep(0.001)  # so that it arrives in pieces, which changes what a parser does


async def _answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
    path = request.target.partition(b"?")[0]
    if path in _EMBEDDINGS and request.method == b"POST":
        try:
            body = answer_of(request.body, _EMBEDDINGS[path], None)
        except (ValueError, LookupError, TypeError, AttributeError):
            await answers.respond_json(b"{}", 400)(request, writer)
            return
        await answers.respond_json(body)(request, writer)
        return
    await answers.respond(b"ok", headers=[(b"X-Echo", request.target)])(request, writer)


async def fuzz(seconds: float, seed: int) -> Edge:
    """Go on for so long; the input that failed is told by its number in the seed."""
    async with wire_rig(**LIMITS) as rig:
        edge = Edge(rig)
        started_s = time.monotonic()
        while time.monotonic() - started_s < seconds:
            chance = random.Random(f"{seed}-{edge.inputs}")
            data = drawn(chance)
            try:
                await edge.one_input(data, chance)
                if edge.inputs % 500 == 0:
                    edge.check_log()
            except AssertionError:
                print(f"input {edge.inputs} of seed {seed}: {data!r}", flush=True)
                raise
        edge.check_log()
        return edge


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description="Raw bytes against a running proxy.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    edge = asyncio.run(fuzz(options.seconds, options.seed))
    print(
        f"{edge.inputs} inputs, {edge.answers} answers, {edge.forwarded} requests at the upstream; seed {options.seed}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
