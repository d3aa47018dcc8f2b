"""
Entries to stored bytes and back; whatever does not open is a miss.

Layout: tag (16 bytes) | header | generation | surroundings (compressed) | vector (packed). The tag binds everything
behind it to the full key and is checked before anything is read, so an altered, truncated, moved or foreign value is
never parsed. The expiry stands inside, so a value put back by somebody else ends when it should.
"""

import hmac
import struct
import zlib

import orjson

from proxy.cache.vector_packing import Form, Unreadable, pack, unpack
from proxy.core.entry import Entry, Row
from proxy.core.key import TAG_BYTES, Secret, authentication_tag

FORMAT_VERSION = 3

# format version, form, stored (Unix ms), lifetime (ms), length of the generation, length of the surroundings
_HEADER = struct.Struct("<BBQQBI")
# A control byte, which no JSON text contains. An envelope can be a protobuf message with any byte: it stands first.
_SEPARATOR = b"\x1e"
_MAX_SURROUNDINGS = 1 << 20
_BESIDE_BYTES = 400
_FORMS = {form.value: form for form in Form}

# What envelopes and skeletons look like today; compressing against it leaves little more than the request id. It is
# part of the format: a change needs a new version.
_DICTIONARY = (
    b'"prompt_tokens":1,"sparse_embedding":[{"index":1,"value":0.1,"token":"\x1e[[0,"0.00001"]]'
    b'{"data":\x02,"model":"text-embedding-v3","object":"list","usage":\x03,"id":\x04}'
    b'{"data":\x02,"model":"text-embedding-v4","object":"list","usage":\x03,"id":\x04}'
    b'\x1e{"embedding":\x00,"index":\x01,"object":"embedding"}\x1e{"prompt_tokens":12,"total_tokens":12}\x1e'
    b'{"output":{"embeddings":\x02},"usage":\x03,"request_id":\x04}'
    b'\x1e{"embedding":\x00,"text_index":\x01}\x1e{"total_tokens":12}\x1e'
)


class Rejected(ValueError):  # noqa: N818  a verdict, not a fault
    """A stored value that is not ours, not whole, or not of this version."""


class Codec:
    """Seals entries under a deployment secret; *max_bytes* bounds a stored value and what it may unfold to."""

    def __init__(self, secret: Secret, max_bytes: int) -> None:
        self._secret = secret
        self._max_bytes = max_bytes

    def seal(self, key: bytes, entry: Entry) -> bytes | None:
        """The stored form of *entry* under *key*; ``None`` when it would be larger than an entry may be."""
        row = entry.row
        form, packed, respelled = pack(row.vector)
        plain = _SEPARATOR.join(
            (
                row.envelope,
                row.skeleton,
                orjson.dumps(dict(row.usage)),
                row.origin.encode("ascii"),
                orjson.dumps([(start, text.decode("ascii")) for start, text in respelled]) if respelled else b"",
            )
        )
        surroundings = _squeeze(plain)
        # The same bounds as in ``open``: what is sealed can be opened.
        if len(plain) >= _MAX_SURROUNDINGS or len(row.vector) > self._max_bytes:
            return None
        lengths = (len(entry.generation), len(surroundings))
        header = _HEADER.pack(FORMAT_VERSION, form, entry.stored_unix_ms, entry.ttl_ms, *lengths)
        stored = header + entry.generation + surroundings + packed
        return authentication_tag(self._secret, key, stored) + stored

    def open(self, key: bytes, sealed: bytes) -> Entry:
        """
        The entry that was sealed under *key*.

        Raises:
            Rejected: anything at all is wrong with *sealed*.
        """
        if not TAG_BYTES + _HEADER.size <= len(sealed) <= 2 * self._max_bytes:
            raise Rejected("length")
        stored = sealed[TAG_BYTES:]
        if not hmac.compare_digest(sealed[:TAG_BYTES], authentication_tag(self._secret, key, stored)):
            raise Rejected("authentication tag")
        version, form, stored_unix_ms, ttl_ms, generation_length, length = _HEADER.unpack_from(stored)
        start = _HEADER.size + generation_length
        if version != FORMAT_VERSION:
            raise Rejected("format version")
        try:
            row = self._row(_FORMS[form], stored[start:], length)
        except (ValueError, TypeError, AttributeError, KeyError, zlib.error) as error:  # the rest are ValueErrors
            raise Rejected("contents") from error
        return Entry(row, stored_unix_ms, ttl_ms, stored[_HEADER.size : start])

    def _row(self, form: Form, contents: bytes, length: int) -> Row:
        envelope, skeleton, usage, origin, respelled = _expand(contents[:length]).rsplit(_SEPARATOR, 4)
        spelled: tuple[tuple[int, bytes], ...] = ()
        if respelled:
            spelled = tuple((start, text.encode("ascii")) for start, text in orjson.loads(respelled))
        return Row(
            envelope=envelope,
            skeleton=skeleton,
            vector=unpack(form, contents[length:], spelled, self._max_bytes),
            usage=tuple(orjson.loads(usage).items()),
            origin=origin.decode("ascii"),
        )


class Opened:
    """
    Opens entries, and those it has opened lately without opening them again; for the event loop alone.

    Equal bytes under an equal key are the same entry, so nothing is taken on trust: the tag was checked for these very
    bytes, and whatever changes with time (lifetime, generation, who may have it) is the caller's to look at each time.
    Bounded in bytes, the oldest go first.
    """

    def __init__(self, codec: Codec, max_bytes: int) -> None:
        self._codec = codec
        self._max_bytes = max_bytes
        self._kept: dict[bytes, tuple[bytes, Entry]] = {}
        self.bytes = 0

    def open(self, key: bytes, sealed: bytes) -> Entry:
        """See ``Codec.open``."""
        known = self._kept.get(key)
        if known is not None and known[0] == sealed:
            return known[1]
        entry = self._codec.open(key, sealed)
        self._forget(key)
        self._kept[key] = (sealed, entry)
        self.bytes += _held(sealed, entry)
        while self.bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))
        return entry

    def _forget(self, key: bytes) -> None:
        known = self._kept.pop(key, None)
        if known is not None:
            self.bytes -= _held(*known)


def _held(sealed: bytes, entry: Entry) -> int:
    """Bytes that both take, about."""
    return _BESIDE_BYTES + len(sealed) + entry.row.size


def _squeeze(text: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 4, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return squeezer.compress(text) + squeezer.flush()


def _expand(squeezed: bytes) -> bytes:
    expander = zlib.decompressobj(-zlib.MAX_WBITS, _DICTIONARY)
    text = expander.decompress(squeezed, _MAX_SURROUNDINGS)
    if not expander.eof:
        raise Unreadable("surroundings too large or cut short")
    return text
