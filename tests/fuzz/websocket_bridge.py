"""
Frames, good and bad, from both sides of a bridge: ``python -m tests.fuzz.websocket_bridge --seconds 60``.

A strict reader of our own tells which bytes may go on (RFC 6455 §5). The other side must get the
beginning of just that, byte for byte, and behind it perhaps a goodbye of the bridge itself, where a frame may stand.
Both connections end, within the limits; a fresh one is answered rightly at once; and the log holds no traceback.
"""

import argparse
import asyncio
import base64
import hashlib
import random
import struct
import sys
import time
from typing import Any

from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers, wire
from tests.support.waiting import wait_until

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = base64.b64encode(bytes(16))
_CONTINUES, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_KINDS = (_CONTINUES, _TEXT, _BINARY, _CLOSE, _PING, _PONG)
_PATIENCE_S = 15.0
_CODES = (*range(1000, 1004), *range(1007, 1015), 3000, 4999)


def frame(kind: int, content: bytes, *, is_last: bool = True, mask: bytes | None = None, bits: int = 0) -> bytes:
    """One frame; *bits* are set in its first byte, whether that is allowed or not."""
    flag = 0x80 if mask is not None else 0
    size = len(content)
    if size < 126:
        length = bytes([flag | size])
    elif size < 65_536:
        length = bytes([flag | 126]) + struct.pack("!H", size)
    else:
        length = bytes([flag | 127]) + struct.pack("!Q", size)
    head = bytes([(0x80 if is_last else 0) | kind | bits]) + length
    return head + (content if mask is None else mask + _masked(content, mask))


def _masked(content: bytes, mask: bytes) -> bytes:
    stream = (mask * (len(content) // 4 + 1))[: len(content)]
    return (int.from_bytes(content, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(content), "big")


def sound(data: bytes, *, is_masked: bool) -> tuple[int, list[int]]:
    """How many bytes at the start of *data* may go on, and the kinds of the whole frames among them."""
    at, is_inside = 0, False
    kinds: list[int] = []
    while len(data) >= at + 2:
        first, second = data[at], data[at + 1]
        code, is_last = first & 15, bool(first & 0x80)
        if first & 0x70 or code not in _KINDS or bool(second & 0x80) != is_masked:
            break
        width, form = {126: (2, "!H"), 127: (8, "!Q")}.get(second & 0x7F, (0, ""))
        head = 2 + width + 4 * is_masked
        if len(data) < at + head:
            break
        size = struct.unpack_from(form, data, at + 2)[0] if form else second & 0x7F
        end = at + head + size
        if size >= 2**63 or (code < _CLOSE and (code == _CONTINUES) != is_inside):
            break
        if code >= _CLOSE:
            content = data[at + head : end]
            if is_masked:
                content = _masked(content, data[at + head - 4 : at + head])
            if not is_last or size > 125 or len(data) < end or (code == _CLOSE and not _is_goodbye(content)):
                break
        else:
            is_inside = not is_last
        kinds.append(code)
        if code == _CLOSE or len(data) < end:
            return min(end, len(data)), kinds
        at = end
    return at, kinds


def _is_goodbye(content: bytes) -> bool:
    if not content:
        return True
    code = int.from_bytes(content[:2], "big")
    return len(content) >= 2 and (code in _CODES or 3000 <= code <= 4999) and _is_text(content[2:])


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def drawn(chance: random.Random, *, is_masked: bool) -> bytes:
    """Frames as one side may send them; some of them altered."""
    pieces = [_piece(chance, is_masked=is_masked) for _ in range(chance.randint(0, 6))]
    if chance.random() < 0.4:
        pieces.append(_one(chance, _CLOSE, _goodbye(chance), is_masked=is_masked))
    data = bytearray(b"".join(pieces))
    if data and chance.random() < 0.4:
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            data[at] = chance.choice((0, 255, data[at] ^ (1 << chance.randrange(8)), chance.randrange(256)))
    return bytes(data[: chance.randint(0, len(data))] if chance.random() < 0.1 else data)


def _piece(chance: random.Random, *, is_masked: bool) -> bytes:
    kind = chance.choice((_TEXT, _TEXT, _BINARY, _BINARY, _PING, _PONG))
    if kind >= _CLOSE:
        return _one(chance, kind, chance.randbytes(chance.choice((0, 5, 125))), is_masked=is_masked)
    content = chance.randbytes(chance.choice((0, 1, 125, 126, 127, 5_000, 70_000)))
    if kind == _TEXT and chance.random() < 0.9:
        content = content.hex().encode() + "ü\U0001f600".encode() * chance.randint(0, 3)
    cuts = sorted(chance.randint(0, len(content)) for _ in range(chance.choice((0, 0, 1, 3))))
    parts = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    frames = []
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        frames.append(_one(chance, _CONTINUES if number else kind, part, is_last=is_last, is_masked=is_masked))
        if not is_last and chance.random() < 0.2:
            frames.append(_one(chance, _PING, b"between", is_masked=is_masked))
    return b"".join(frames)


def _one(chance: random.Random, kind: int, content: bytes, *, is_masked: bool, is_last: bool = True) -> bytes:
    bits = 0x40 if chance.random() < 0.01 else 0
    return frame(kind, content, is_last=is_last, mask=chance.randbytes(4) if is_masked else None, bits=bits)


def _goodbye(chance: random.Random) -> bytes:
    code = struct.pack("!H", chance.choice((*_CODES, 999, 1005, 1006, 2000)))
    return chance.choice((b"", code, code + b"bye", code + "ü".encode(), code[:1]))


class BridgeRig:
    """The rig, and what is checked after each input; AssertionError tells what is wrong."""

    def __init__(self, rig: WireRig) -> None:
        self._rig = rig
        self._says = b""
        self._cuts = random.Random(0)
        rig.upstream.answer = answers.respond(b"fine")
        rig.upstream.on_head = self._switch
        self.inputs = self.across = 0

    async def one_input(self, chance: random.Random) -> None:
        """Send frames from both sides, one side's after the other's, and judge what came across."""
        from_client, self._says = drawn(chance, is_masked=True), drawn(chance, is_masked=False)
        self._rig.upstream.connections.clear()
        async with await self._rig.client() as client:
            lines = [(b"Host", b"a"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
            ours = [(b"Sec-WebSocket-Key", _KEY), (b"Sec-WebSocket-Version", b"13")]
            await client.send(wire.head_bytes(b"GET /ws HTTP/1.1", [*lines, *ours]))
            await _told(client.reader.readuntil(b"\r\n\r\n"))
            reading = asyncio.ensure_future(client.read_until_closed(_PATIENCE_S))
            try:
                for at in range(0, len(from_client), 30_000):
                    await client.send(from_client[at : at + 30_000])
                    await asyncio.sleep(0)
            except ConnectionError:
                pass
            await asyncio.sleep(0.02)
            client.writer.close()
            try:
                got = await reading
            except TimeoutError:
                raise AssertionError("the connection has no end") from None
        await wait_until(lambda: self._rig.upstream.connections_open == 0, _PATIENCE_S)
        self._judge(got, self._says, is_masked=False)
        arrived = b"".join(bytes(each.received).partition(b"\r\n\r\n")[2] for each in self._rig.upstream.connections)
        self._judge(arrived, from_client, is_masked=True)
        self._rig.forget()
        async with await self._rig.client() as client:
            assert (await client.request("GET", "/plain")).body == b"fine"
        self._rig.forget()
        self.inputs += 1

    def _judge(self, got: bytes, sent: bytes, *, is_masked: bool) -> None:
        """*got* is a beginning of what may go on of *sent*, and then perhaps a goodbye of ours."""
        limit, _ = sound(sent, is_masked=is_masked)
        _, kinds = sound(got, is_masked=is_masked)
        self.across += len(kinds)
        if sent[:limit].startswith(got):
            return
        ours = next((each for each in _ours(is_masked=is_masked) if got.endswith(each)), None)
        assert ours is not None, f"something came across that was not sent so: {got[-200:]!r}"
        theirs = got[: -len(ours)]
        assert sent[:limit].startswith(theirs), "something came across that was not sent so, before the goodbye"
        at, _ = sound(got, is_masked=is_masked)
        assert at == len(got), "the goodbye stands inside a frame"

    async def _switch(self, head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        if head.get("Upgrade") is None:
            return False
        key = head.get("Sec-WebSocket-Key") or b""
        accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
        lines = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", accept)]
        writer.write(wire.head_bytes(b"HTTP/1.1 101 Switching Protocols", lines))
        writer.write(self._says)
        protocol: Any = writer.transport.get_protocol()
        heard, gone = protocol.connection.received, protocol.connection.peer_closed
        # A goodbye that nobody returns is waited for by the bridge, and there would be few inputs in an hour.
        await wait_until(lambda: gone.is_set() or _says_goodbye(bytes(heard)), 4 * _PATIENCE_S)
        writer.close()
        return True

    def check_log(self) -> None:
        """No fault of ours in the log."""
        faults = [record for record in self._rig.proxy.logs if record.get("level") == "error" or "where" in record]
        assert not faults, faults[:3]
        assert b"Traceback" not in self._rig.proxy.output


def _says_goodbye(received: bytes) -> bool:
    return _CLOSE in sound(received.partition(b"\r\n\r\n")[2], is_masked=True)[1]


def _ours(*, is_masked: bool) -> tuple[bytes, ...]:
    return tuple(frame(_CLOSE, struct.pack("!H", code), mask=bytes(4) if is_masked else None) for code in (1001, 1002))


async def _told(reading: Any) -> bytes:
    async with asyncio.timeout(_PATIENCE_S):
        told: bytes = await reading
        return told


async def fuzz(seconds: float, seed: int) -> BridgeRig:
    """Go on for so long; the input that failed is told by its number in the seed."""
    async with wire_rig() as rig:
        bridge = BridgeRig(rig)
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            try:
                await bridge.one_input(random.Random(f"{seed}-{bridge.inputs}"))
                if bridge.inputs % 500 == 0:
                    bridge.check_log()
            except AssertionError:
                print(f"input {bridge.inputs} of seed {seed}", flush=True)
                raise
        bridge.check_log()
        return bridge


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description="WebSocket frames from both sides of a running proxy.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    bridge = asyncio.run(fuzz(options.seconds, options.seed))
    print(f"{bridge.inputs} inputs, {bridge.across} frames across; seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
