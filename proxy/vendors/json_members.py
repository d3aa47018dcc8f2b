"""The members of a JSON object as they stand in its text, each once: an answer that repeats one is not kept."""

import re

import msgspec
import numpy as np
import orjson

from proxy.core.plan import NotStorable, Refusal

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_MEMBER = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_MEMBER_WEIGHT = 128
"""A member takes as long to be looked at as so many bytes of numbers or text (measured, see decision 14)."""
_END = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*")


def weight(body: bytes) -> int:
    """How many bytes of plain text would take about as long as the answer *body*; see ``runtime.offload``."""
    colons = np.count_nonzero(np.frombuffer(body, np.uint8) == ord(":"))  # a third of the time of bytes.count, or less
    return len(body) + _MEMBER_WEIGHT * int(colons)


def spans(body: bytes) -> dict[str, tuple[int, int]]:
    """
    Where the value of each member of the object *body* (valid JSON) begins and ends.

    Raises:
        NotStorable: a member stands twice, so that two parsers could read two answers.
    """
    try:
        values = _members(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotStorable(Refusal.SHAPE) from error
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for _ in values:
        found = _MEMBER.match(body, at)
        name = orjson.loads(found[1]) if found else ""
        value = bytes(values.get(name, b""))
        if found is None or name in places or not value or not body.startswith(value, found.end()):
            raise NotStorable(Refusal.SHAPE)
        at = found.end() + len(value)
        places[name] = (found.end(), at)
    if _END.fullmatch(body, at) is None:
        raise NotStorable(Refusal.SHAPE)
    return places


def members(body: bytes) -> dict[str, bytes]:
    """The text of each member's value in the object *body* (valid JSON). Raises NotStorable; see ``spans``."""
    return {name: body[start:end] for name, (start, end) in spans(body).items()}
