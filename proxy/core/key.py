"""
The identity of an item: a keyed hash over length-prefixed parts.

The hash is BLAKE2b with a deployment secret, so that whoever reads Redis can neither read a text nor test a guess.
Every part carries its length, so no two lists of parts run into each other however their bytes are cut.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

KEY_VERSION = 1
"""Part of every key: a change in what a key covers must change it, and then no old entry is found."""

KEY_BYTES = 32
TAG_BYTES = 16


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """The deployment secret, split into one key for identities and one for authentication tags."""

    identity: bytes
    entry: bytes

    @classmethod
    def derive(cls, secret: bytes) -> "Secret":
        """Both keys from *secret* (any length; it is hashed first, as BLAKE2b takes at most 64 bytes)."""
        root = hashlib.blake2b(secret, person=b"dashcache-root").digest()

        def part(person: bytes) -> bytes:
            return hashlib.blake2b(key=root, person=person).digest()

        return cls(part(b"dashcache-key"), part(b"dashcache-entry"))


def prefixed(parts: Iterable[bytes]) -> bytes:
    """*parts* joined so that they can be told apart again: each with its length (8 bytes, little endian) before it."""
    pieces: list[bytes] = []
    for part in parts:
        pieces += (_length(len(part)), part)
    return b"".join(pieces)


_length = struct.Struct("<Q").pack


def common_digest(secret: Secret, parts: Iterable[bytes]) -> bytes:
    """What all items of a request share (32 bytes): version, upstream, credential, operation, fields but the items."""
    material = prefixed((b"dashcache", bytes([KEY_VERSION]), *parts))
    return hashlib.blake2b(material, key=secret.identity, digest_size=KEY_BYTES, person=b"common").digest()


def item_key(secret: Secret, common: bytes, item: bytes) -> bytes:
    """The key (32 bytes) of one *item* under the *common* digest of its request."""
    material = prefixed((common, item))
    return hashlib.blake2b(material, key=secret.identity, digest_size=KEY_BYTES, person=b"item").digest()


def item_keys(secret: Secret, common: bytes, items: Iterable[bytes]) -> tuple[bytes, ...]:
    """``item_key`` of each of *items*."""
    return tuple(item_key(secret, common, item) for item in items)


def authentication_tag(secret: Secret, key: bytes, stored: bytes) -> bytes:
    """The tag (16 bytes) that binds *stored* bytes to their *key*: moved to another key they no longer open."""
    material = prefixed((key, stored))
    return hashlib.blake2b(material, key=secret.entry, digest_size=TAG_BYTES, person=b"entry").digest()
