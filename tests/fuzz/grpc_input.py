"""Input of a hostile client of the gRPC port: HTTP/2 frames, good and bad; and a reader of the messages in them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.consistency.calls import Call, grpc_form
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    frame,
    grpc_message,
)

PRIORITY, PUSH_PROMISE = 2, 5
_PADDED = 8
_HEAD_BYTES, _PREFIX_BYTES = 9, 5

Lines = list[tuple[bytes, bytes]]

_PATHS = (b"", b"/", b"//", b"*", b"no-slash", b"/\xff/\xfe", b"/a/\xc3", b"/a\0b/c", b"/a/" + b"x" * 6_000, b"/a/b?c")
_NAMES = (b"", b"X-Upper", b":unknown", b":status", b"te", b"connection", b"transfer-encoding", b"content-length")
_VALUES = (b"", b"\xff\xfe", b"a\r\nb: c", b"\0", b"chunked", b"0", b"-1", b"99999999999", b"gzip", b"x" * 4_000)
_TIMEOUTS = (b"0n", b"1n", b"50m", b"-1S", b"99999999999H", b"1", b"S", b"\xff")
_CONTENT_TYPES = (b"", b"text/plain", b"application/grpc+json", b"application/grpc-web", b"\xff")
_MOST_PINGS = 40


@dataclass(slots=True)
class Input:
    """The bytes that one connection sends, and the calls in it of which nothing was altered, by stream."""

    data: bytes = PREFACE
    asked: dict[int, Call] = field(default_factory=dict)


def sound(calls: Sequence[Call], token: bytes) -> Input:
    """Nothing but good calls."""
    said = Input(PREFACE + frame(SETTINGS, 0, 0, b""))
    for number, call in enumerate(calls):
        stream = 2 * number + 1
        lines, message = _spelled(call, token)
        said.data += frame(HEADERS, END_HEADERS, stream, block(*lines))
        said.data += frame(DATA, END_STREAM, stream, grpc_message(message))
        said.asked[stream] = call
    return said


def drawn(chance: random.Random, calls: Sequence[Call], token: bytes) -> Input:
    """Good calls, bad ones, and frames that belong to none, in one connection."""
    said = Input()
    if chance.random() < 0.03:
        said.data = chance.choice(
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", PREFACE[:-1] + b"x", b"", chance.randbytes(30))
        )
    said.data += frame(SETTINGS, 0, 0, b"") if chance.random() < 0.9 else _settings(chance)
    stream, used = 1, set[int]()
    for call in calls:
        if chance.random() < 0.3:
            said.data += _loose(chance, stream)
        frames, is_sound = _call(chance, stream, call, token)
        said.data += frames
        if is_sound and stream not in used:
            said.asked[stream] = call
        elif stream in used:  # its answer may be that of either call
            said.asked.pop(stream, None)
        used.add(stream)
        stream += chance.choice((2, 2, 2, 2, 2, 2, 2, 10, 1, 0, -2)) if chance.random() < 0.2 else 2
        stream = max(stream, 0)
    if chance.random() < 0.2:
        said.data, said.asked = _altered(chance, said.data), {}
    return said


def _call(chance: random.Random, stream: int, call: Call, token: bytes) -> tuple[bytes, bool]:
    """The frames of one call, and whether they are what a client of the library's would send."""
    lines, message = _spelled(call, token)
    is_sound = chance.random() < 0.5
    if is_sound:
        head = _head(chance, stream, block(*lines), is_broken=False)
        return head + _body(chance, stream, grpc_message(message)), True
    kind = chance.choice(("lines", "lines", "head", "message", "message", "body", "after"))
    if kind == "lines":
        lines = _odd_lines(chance, lines)
    coded = block(*lines)
    if kind == "head" and chance.random() < 0.5:
        coded = _altered(chance, coded)
    content = _odd_message(chance, message) if kind == "message" else grpc_message(message)
    head = _head(chance, stream, coded, is_broken=kind == "head")
    body = _odd_body(chance, stream, content) if kind == "body" else _body(chance, stream, content)
    after = b"".join(_loose(chance, stream) for _ in range(chance.randint(1, 3))) if kind == "after" else b""
    return head + body + after, False


def _spelled(call: Call, token: bytes) -> tuple[Lines, bytes]:
    method, message, metadata = grpc_form(call)
    lines = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()), (b":authority", b"proxy.local")]
    lines += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"dashvector-auth-token", token)]
    return lines + [(name.encode(), value.encode()) for name, value in metadata], message


def _odd_lines(chance: random.Random, lines: Lines) -> Lines:
    lines = list(lines)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(lines))
        name, value = lines[at]
        match chance.randrange(9):
            case 0 | 1:
                lines[2] = (lines[2][0], chance.choice(_PATHS))
            case 2:
                del lines[at]
                if len(lines) < 4:
                    return lines
            case 3:
                lines.insert(chance.randint(0, len(lines)), (name, value))
            case 4:
                chance.shuffle(lines)
            case 5:
                lines[at] = (chance.choice(_NAMES), value)
            case 6:
                lines[at] = (name, chance.choice(_VALUES))
            case 7:
                lines.append((b"grpc-timeout", chance.choice(_TIMEOUTS)))
            case _:
                odd = ((b"content-type", chance.choice(_CONTENT_TYPES)), (b"grpc-encoding", chance.choice(_VALUES)))
                more = ((b"x-bin", chance.choice((b"!", b"a", b"YQ==", b"\xff"))), (chance.choice(_NAMES), b"v"))
                lines.append(chance.choice((*odd, *more)))
    return lines


def _head(chance: random.Random, stream: int, coded: bytes, *, is_broken: bool) -> bytes:
    """HEADERS and its CONTINUATIONs; *is_broken*: perhaps with something between, elsewhere, or never ended."""
    parts = _cut(chance, coded, 3)
    frames = [frame(CONTINUATION if number else HEADERS, 0, stream, part) for number, part in enumerate(parts)]
    kind = CONTINUATION if len(parts) > 1 else HEADERS
    frames[-1] = frame(kind, END_HEADERS, stream, parts[-1])
    if is_broken:
        match chance.randrange(4):
            case 0:
                frames.insert(chance.randint(0, len(frames)), _loose(chance, stream))
            case 1:
                frames.append(frame(CONTINUATION, END_HEADERS, stream, b""))
            case 2:
                frames[-1] = frame(kind, 0, stream, parts[-1])
            case _:
                frames.insert(0, frame(CONTINUATION, 0, stream + 2, b""))
    return b"".join(frames)


def _body(chance: random.Random, stream: int, content: bytes) -> bytes:
    """DATA frames as any client may cut them."""
    parts = _cut(chance, content, 3)
    return b"".join(
        frame(DATA, END_STREAM if number == len(parts) - 1 else 0, stream, part) for number, part in enumerate(parts)
    )


def _odd_message(chance: random.Random, message: bytes) -> bytes:
    size = len(message)
    match chance.randrange(7):
        case 0:  # a length that is not the message's
            lie = chance.choice((0, 1, max(0, size - 1), size + 1, 2**31, 2**32 - 1))
            return b"\0" + lie.to_bytes(4, "big") + message
        case 1:
            return chance.choice((b"\x01", b"\x02", b"\xff")) + size.to_bytes(4, "big") + message
        case 2:
            return grpc_message(message) * chance.randint(2, 4)
        case 3:
            return grpc_message(message)[: chance.randint(0, size + 4)]
        case 4:
            return grpc_message(_altered(chance, message))
        case 5:
            return grpc_message(b"")
        case _:
            return grpc_message(message) + chance.randbytes(chance.randint(1, 9))


def _odd_body(chance: random.Random, stream: int, content: bytes) -> bytes:
    match chance.randrange(6):
        case 0:
            return frame(DATA, 0, stream, content)  # not ended
        case 1:
            padding = chance.choice((0, 3, 200, 255))
            return frame(DATA, END_STREAM | _PADDED, stream, bytes([padding]) + content + bytes(min(padding, 3)))
        case 2:
            return frame(DATA, END_STREAM, stream, content) + frame(DATA, END_STREAM, stream, content)
        case 3:
            return frame(DATA, END_STREAM, stream + 2, content)
        case 4:
            return frame(DATA, 0, stream, b"") * chance.randint(1, 30) + frame(DATA, END_STREAM, stream, content)
        case _:
            return frame(DATA, 0, stream, content[:7]) + frame(RESET, 0, stream, b"\0\0\0\x08")


def _loose(chance: random.Random, stream: int) -> bytes:
    """A frame, or a few, that are no call's own."""
    stream = chance.choice((0, stream, stream, stream + 2, 2, 2**31 - 1))
    match chance.randrange(9):
        case 0:
            return frame(PING, chance.choice((0, 0, 1)), 0, b"12345678") * chance.randint(1, _MOST_PINGS)
        case 1:
            return frame(PING, 0, stream, chance.randbytes(chance.choice((0, 7, 9))))
        case 2:
            return frame(RESET, 0, stream, chance.choice((b"\0\0\0\x08", b"\0\0\0\0", b"\0", b"\xff\xff\xff\xff")))
        case 3:
            return frame(
                WINDOW_UPDATE, 0, stream, chance.choice((b"\0\0\0\0", b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\0"))
            )
        case 4:
            return _settings(chance)
        case 5:
            return frame(GOAWAY, 0, chance.choice((0, stream)), bytes(8) + chance.randbytes(chance.randint(0, 9)))
        case 6:
            return frame(PRIORITY, 0, stream, stream.to_bytes(4, "big") + b"\x10")
        case 7:
            return frame(PUSH_PROMISE, END_HEADERS, stream, b"\0\0\0\2" + block((b":method", b"GET")))
        case _:
            return frame(
                chance.randint(10, 255), chance.randrange(256), stream, chance.randbytes(chance.randint(0, 99))
            )


def _settings(chance: random.Random) -> bytes:
    sizes = (0, 1, 16_384, 2**24, 2**31, 2**32 - 1)
    pairs = [
        chance.randint(0, 9).to_bytes(2, "big") + chance.choice(sizes).to_bytes(4, "big")
        for _ in range(chance.randint(0, 4))
    ]
    return frame(SETTINGS, chance.choice((0, 0, 0, 1)), 0, b"".join(pairs) + chance.choice((b"", b"", b"", b"x")))


def _cut(chance: random.Random, data: bytes, most: int) -> list[bytes]:
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.choice((0, 0, 1, most))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _altered(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3) if changed else 0):
        at = chance.randrange(len(changed))
        changed[at] = chance.choice((0, 255, changed[at] ^ (1 << chance.randrange(8)), chance.randrange(256)))
    return bytes(changed[: chance.randint(0, len(changed))] if chance.random() < 0.3 else changed)


# --- reading ----------------------------------------------------------------------------------------------------------


def messages(data: bytes) -> dict[int, list[bytes]]:
    """By stream, the whole gRPC messages that are not compressed in the DATA frames of *data*, without a preface."""
    return {stream: _split(b"".join(parts)) for stream, parts in _parts(data).items()}


def may_be_read(data: bytes) -> set[bytes]:
    """All messages that a server may find in *data*, which may drop some DATA frames and take those behind them."""
    found: set[bytes] = set()
    for parts in _parts(data).values():
        for start in range(len(parts)):
            rest = b"".join(parts[start:])
            found.update(_split(rest))
            if any(rest[at] > 1 for at in _prefixes(rest)):
                found.add(b"")  # gRPC's library takes a first byte that is neither 0 nor 1 for an empty message
    return found


def _prefixes(data: bytes) -> list[int]:
    """Where messages begin."""
    found, at = [], 0
    while len(data) >= at + _PREFIX_BYTES:
        found.append(at)
        at += _PREFIX_BYTES + int.from_bytes(data[at + 1 : at + _PREFIX_BYTES], "big")
    return found


def _parts(data: bytes) -> dict[int, list[bytes]]:
    """By stream, what its DATA frames hold."""
    found: dict[int, list[bytes]] = {}
    while len(data) >= _HEAD_BYTES:
        size, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
        stream = int.from_bytes(data[5:9], "big") & 0x7FFFFFFF
        content, data = data[_HEAD_BYTES : _HEAD_BYTES + size], data[_HEAD_BYTES + size :]
        if kind == DATA and len(content) == size:
            padding = content[0] if flags & _PADDED and content else 0
            part = content[1 : len(content) - padding] if flags & _PADDED else content
            found.setdefault(stream, []).append(part)
    return found


def _split(data: bytes) -> list[bytes]:
    found = []
    while len(data) >= _PREFIX_BYTES:
        size = int.from_bytes(data[1:_PREFIX_BYTES], "big")
        if data[0] or len(data) < _PREFIX_BYTES + size:
            break
        found.append(data[_PREFIX_BYTES : _PREFIX_BYTES + size])
        data = data[_PREFIX_BYTES + size :]
    return found
