"""Ids for the answers that the cache makes, in the form of the vendor's: version 4 UUIDs (RFC 9562 §5.4)."""

import random
import secrets
from collections.abc import Callable

_TAIL_BITS = 48
_ALIKE = 4_096
"""How many ids in a row count up in their last group, before another beginning is drawn."""


def request_ids() -> Callable[[], str]:
    """
    Makes ids for one process; they differ from those of others, but are no secret: who has seen one can guess the next.

    To draw each anew would be a fifth of what a repeated hit costs, and the system's randomness a system call.
    """
    bits = random.Random(secrets.token_bytes(32)).getrandbits  # noqa: S311  see above
    head, tail, left = "", 0, 0

    def request_id() -> str:
        nonlocal head, tail, left
        if not left:
            left, tail = _ALIKE, bits(_TAIL_BITS - 1)  # room to count up
            text = f"{bits(80):020x}"
            head = f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[bits(2)]}{text[17:20]}-"
        left -= 1
        tail += 1
        return f"{head}{tail:012x}"

    return request_id
