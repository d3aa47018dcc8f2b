"""HTTP/2 frames by hand (RFC 9113), for peers that no library plays. Used by the tests of the gRPC port."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9  # RFC 9113 §6
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def block(*lines: tuple[bytes, bytes]) -> bytes:
    """Lines as HPACK literals without indexing (RFC 7541 §6.2.2)."""
    return b"".join(b"\0" + _length(name) + name + _length(value) + value for name, value in lines)


def _length(text: bytes) -> bytes:
    """Of a string without Huffman's code (RFC 7541 §5.1, §5.2)."""
    if len(text) < 127:
        return bytes([len(text)])
    coded, rest = b"\x7f", len(text) - 127
    while rest >= 128:
        coded, rest = coded + bytes([rest % 128 + 128]), rest // 128
    return coded + bytes([rest])


def grpc_head(path: bytes, *lines: tuple[bytes, bytes]) -> bytes:
    """The block of a call's head."""
    head = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"proxy.local"))
    return block(*head, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *lines)


def grpc_message(content: bytes) -> bytes:
    """A message, not compressed, as it stands in DATA frames."""
    return b"\0" + len(content).to_bytes(4, "big") + content
