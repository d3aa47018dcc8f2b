"""
Raw answers of an HTTP upstream, good and bad: ``python -m tests.fuzz.upstream_answers --seconds 60``.

Each input asks for texts that nobody asked for before, and the upstream answers with bytes that are broken somewhere:
in the head, in the framing, in the end, with a whole second answer behind the first. The client gets an answer or the
connection's end, within the limits. Then the same texts, and others, must have what the vendor says to them: nothing
of a broken answer is kept, and nothing of it goes to the one who asks next. The log holds no traceback.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any

from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE
from tests.fuzz.embedding_request import answer_of
from tests.fuzz.oracles import loaded, told
from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import wire
from tests.support.raw_client import IncompleteResponseError, RawResponse
from tests.support.recorded import RecordedRequest

LIMITS = {"DASHCACHE_UPSTREAM_READ_TIMEOUT_S": "0.5"}
_PATIENCE_S = 15.0
_EMBEDDINGS = {NATIVE.path: False, COMPATIBLE.path: True}
_STATUSES = (b"100", b"101", b"103", b"200", b"200", b"201", b"204", b"206", b"304", b"429", b"500", b"2000", b"abc")
_VALUES = (b"", b"0", b"-1", b"+5", b"5, 5", b"1e3", b"99999999999999999999", b"chunked", b"gzip", b"\xff", b"close")
_NAMES = (b"Content-Length", b"Transfer-Encoding", b"Content-Encoding", b"Connection", b"Trailer", b"Content-Range")


def drawn(chance: random.Random, body: bytes, poison: bytes) -> tuple[bytes, bool]:
    """An answer that says *body*, broken somewhere, and perhaps *poison* behind it; whether its connection ends."""
    lines = [(b"Content-Type", b"application/json")]
    if is_chunked := chance.random() < 0.4:
        lines.append((b"Transfer-Encoding", b"chunked"))
        cut = chance.randint(0, len(body))
        body = b"".join(wire.chunk(part) for part in (body[:cut], body[cut:]) if part) + wire.chunk(b"")
    elif chance.random() < 0.9:
        lies = (0, 1, len(body) - 1, len(body) + 1, 10 * len(body)) if chance.random() < 0.4 else (len(body),)
        lines.append((b"Content-Length", b"%d" % chance.choice(lies)))
    start = b"HTTP/1.1 200 OK"
    for _ in range(chance.choice((0, 1, 1, 2))):
        match chance.randrange(7):
            case 0:
                start = b"HTTP/1.1 " + chance.choice(_STATUSES) + chance.choice((b" OK", b"", b" \xff"))
            case 1:
                start = chance.choice((b"HTTP/1.0 200 OK", b"HTTP/2 200", b"", b"\0", b"ICY 200 OK"))
            case 2 | 3:
                lines.insert(chance.randint(0, len(lines)), (chance.choice(_NAMES), chance.choice(_VALUES)))
            case 4:
                lines.append((chance.choice((b"", b"a b", b"x\0", b" folded", b"\xff")), b"v"))
            case 5:
                del lines[chance.randrange(len(lines))]
                lines = lines or [(b"X-Left", b"1")]
            case _ if is_chunked:
                body = chance.choice((body[:-2], b"z\r\n" + body, body.replace(b"\r\n", b"\n", 1), b"-" + body))
            case _:
                start = b"HTTP/1.1 100 Continue\r\n\r\n" + start
    data = wire.head_bytes(start, lines) + body
    if chance.random() < 0.4:
        lines = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(poison))]
        data += wire.head_bytes(b"HTTP/1.1 200 OK", lines) + poison
    if chance.random() < 0.15:
        data = data[: chance.randint(0, len(data))]
    return data, chance.random() < 0.3


class AnswersRig:
    """The rig, and what is checked after each input; AssertionError tells what is wrong."""

    def __init__(self, rig: WireRig) -> None:
        self._rig = rig
        self._chance = random.Random(0)
        self._is_broken = False
        """Whether the upstream's answers are, now."""
        rig.upstream.answer = self._answer
        self.inputs = self.answers = self.kept = 0

    async def one_input(self, chance: random.Random) -> None:
        """A broken answer, and what the same client and others get after it."""
        self._chance = chance
        path, is_compatible = chance.choice(list(_EMBEDDINGS.items()))
        texts = [f"{self.inputs}-{number}" for number in range(chance.randint(1, 3))]
        self._is_broken = True
        async with await self._rig.client() as client:
            try:
                await client.post(path, _body(texts, is_compatible), _CREDENTIAL)
                self.answers += 1
            except TimeoutError:
                raise AssertionError("no answer, and no end of the connection") from None
            except (ConnectionError, IncompleteResponseError):  # broken off, as the upstream's was
                pass
        self._is_broken = False
        others = [f"other-{chance.randrange(400)}" for _ in range(2)]
        found = await asyncio.gather(*(self._well(path, part, is_compatible) for part in (texts, others)))
        self.kept += (found[0].header("Cache-Status") or b"").startswith(b"dashcache; hit")
        for part, response in zip((texts, others), found, strict=True):
            _judge(part, is_compatible, response)
        self._rig.forget()
        self.inputs += 1

    async def _well(self, path: str, texts: list[str], is_compatible: bool) -> RawResponse:
        async with await self._rig.client() as client:
            return await client.post(path, _body(texts, is_compatible), _CREDENTIAL)

    async def _answer(self, request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        is_compatible = _EMBEDDINGS[request.target.decode()]
        body = answer_of(request.body, is_compatible, None)
        if not self._is_broken:
            lines = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
            writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", lines) + body)
            return
        texts = ["of somebody else"] * len(_texts(request.body, is_compatible))
        poison = answer_of(_body(texts, is_compatible), is_compatible, None)
        data, is_end = drawn(self._chance, body, poison)
        writer.write(data)
        await wire.flush(writer)
        if is_end:
            writer.close()

    def check_log(self) -> None:
        """No fault of ours in the log."""
        faults = [record for record in self._rig.proxy.logs if record.get("level") == "error" or "where" in record]
        assert not faults, faults[:3]
        assert b"Traceback" not in self._rig.proxy.output


_CREDENTIAL = [(b"Authorization", b"Bearer sk")]


def _body(texts: list[str], is_compatible: bool) -> bytes:
    return json.dumps({"model": "m", "input": texts if is_compatible else {"texts": texts}}).encode()


def _texts(body: bytes, is_compatible: bool) -> list[str]:
    found: Any = json.loads(body)["input"]
    texts: list[str] = found if is_compatible else found["texts"]
    return texts


def _judge(texts: list[str], is_compatible: bool, response: RawResponse) -> None:
    assert response.status == 200, response.raw
    answer: Any = loaded(response.body)
    expected: Any = loaded(answer_of(_body(texts, is_compatible), is_compatible, None))
    request_id = "id" if is_compatible else "request_id"
    assert told({**answer, request_id: ""}) == told({**expected, request_id: ""}), f"{texts}: {response.raw!r}"


async def fuzz(seconds: float, seed: int) -> AnswersRig:
    """Go on for so long; the input that failed is told by its number in the seed."""
    async with wire_rig(**LIMITS) as rig:
        answers = AnswersRig(rig)
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            try:
                await answers.one_input(random.Random(f"{seed}-{answers.inputs}"))
                if answers.inputs % 500 == 0:
                    answers.check_log()
            except (AssertionError, wire.WireError):
                print(f"input {answers.inputs} of seed {seed}", flush=True)
                raise
        answers.check_log()
        return answers


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description="Raw answers of an HTTP upstream to a running proxy.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    answers = asyncio.run(fuzz(options.seconds, options.seed))
    told_of = f"{answers.answers} answers, {answers.kept} kept"
    print(f"{answers.inputs} inputs, {told_of}; seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
