"""What is said to Redis on a pipelined connection: each command with the reply that fits it."""

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")

Values = list[bytes | None]


class Garbage(Exception):  # noqa: N818  speaks of Redis, see ``redis_tier.FAILURES``
    """What came is no reply to what was asked."""


class Command(NamedTuple, Generic[Result]):
    """One command."""

    words: tuple[bytes | str | int, ...]
    read: Callable[[object], Result]
    """Of the reply; raises Garbage if it fits another command."""
    refused: Result
    """Instead of a reply, where Redis is well but does not do this."""
    vouches: bool = False
    """Whether a reply says that Redis is well enough for hits: writes that succeed say nothing of reads."""


def values(names: Sequence[bytes]) -> Command[Values]:
    """What stands under *names*, in their order."""
    count = len(names)

    def read(reply: object) -> Values:
        if type(reply) is list and len(reply) == count and set(map(type, reply)) <= {bytes, NoneType}:
            return reply
        raise Garbage("not one value per key")

    return Command((b"MGET", *names), read, [None] * count, vouches=True)


def put(name: bytes, value: bytes, life_ms: int, *condition: bytes) -> Command[bool]:
    """Let *value* stand under *name* for so long, if the *condition* (NX, XX) allows it; whether it does."""
    return Command((b"SET", name, value, b"PX", life_ms, *condition), _is_done, refused=False)


def script(
    text: str, keys: Sequence[bytes], arguments: Sequence[bytes | int], *, answers: int | None = None
) -> Command[list[int] | None]:
    """
    Run a script of ``scripts``: its numbers, so many, or the one that it answers; ``None``: it did not run.

    The text goes along each time, a few hundred bytes: so nothing has to be known of what the server still knows.
    """

    def read(reply: object) -> list[int]:
        numbers, count = ([reply], 1) if answers is None else (reply, answers)
        if type(numbers) is list and len(numbers) == count and set(map(type, numbers)) <= {int}:
            return numbers
        raise Garbage("not the numbers that were asked for")

    return Command((b"EVAL", text, len(keys), *keys, *arguments), read, refused=None)


def void(text: str, names: Sequence[bytes], arguments: Sequence[bytes | int], scopes: int) -> "Command[Values | None]":
    """Run ``scripts.VOID`` for so many *scopes*: the tokens replaced and the record; ``None``: it did not run."""

    def read(reply: object) -> Values:
        if type(reply) is list and len(reply) == scopes + 1 and set(map(type, reply)) == {bytes}:
            return [value or None for value in reply]
        raise Garbage("not the tokens that were replaced")

    return Command((b"EVAL", text, len(names), *names, *arguments), read, refused=None)


def _is_done(reply: object) -> bool:
    if reply is None or reply == b"OK":
        return reply is not None
    raise Garbage("neither done nor left")
