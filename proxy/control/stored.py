"""How orders (rules, marks) are written down, sealed where others can write, and what is believed when read back."""

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

from proxy.core.key import TAG_BYTES, Secret, authentication_tag

Value = TypeVar("Value")
Kind = TypeVar("Kind", bound="Document")

_NAME = re.compile(r"\*|[a-z0-9][a-z0-9_.-]{0,63}")
_LAST_UNIX_S = 32_503_680_000.0
"""The year 3000. Far beyond it a float cannot tell one order from the next, and an order could never be replaced."""


class BadOrders(ValueError):  # noqa: N818  a verdict about data, like NotStorable
    """Stored orders that are not ours, or damaged; the message says which check failed, never what was read."""


class Document(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The JSON object that orders are stored as; each kind adds its list."""

    format: Literal[1]


@dataclass(frozen=True, slots=True)
class Form(Generic[Value]):
    """A kind of orders: its name in files, keys and log lines, and how all of them together are written."""

    name: str
    empty: Value
    max_bytes: int
    encode: Callable[[Value], bytes]
    decode: Callable[[bytes], Value]
    """Raises BadOrders."""


def read(stored: bytes, kind: type[Kind], max_bytes: int) -> Kind:
    """
    The document in *stored*; what stands in it is the caller's to check.

    Raises:
        BadOrders: too large, another format, or unknown fields.
    """
    if len(stored) > max_bytes:
        raise BadOrders("too large")
    try:
        return msgspec.json.decode(stored, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadOrders("not in the form of orders") from error


def check_name(name: str) -> None:
    """Raise BadOrders if *name* can be neither an upstream's nor an operation's, nor ``*``."""
    if not _NAME.fullmatch(name):
        raise BadOrders("a name that cannot be")


def check_time(unix_s: float) -> None:
    """Raise BadOrders if an order cannot be of that time."""
    if not 0 < unix_s <= _LAST_UNIX_S:
        raise BadOrders("a time that cannot be")


def seal(secret: Secret, key: bytes, body: bytes) -> bytes:
    """*body* as stored under *key* where others can write: an authentication tag before it."""
    return authentication_tag(secret, key, body) + body


def unseal(secret: Secret, key: bytes, stored: bytes) -> bytes:
    """
    The opposite of ``seal``. An old value played back changes nothing: its orders are older than those known.

    Raises:
        BadOrders: not sealed with our secret for this key.
    """
    tag, body = stored[:TAG_BYTES], stored[TAG_BYTES:]
    # Both sides are hashed values; how long a comparison takes tells nobody anything, but this costs nothing.
    if not hmac.compare_digest(tag, authentication_tag(secret, key, body)):
        raise BadOrders("not authenticated")
    return body
