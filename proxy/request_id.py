"""Ids for the answers that the cache makes, in the form of the vendor's: version 4 UUIDs (RFC 9562 §5.4)."""

import random
import secrets
from collections.abc import Callable


def request_ids() -> Callable[[], str]:
    """
    Makes ids for one process; they differ from those of others, but are no secret: who has seen many can guess more.

    The system's randomness would cost each hit a system call, which lets other threads take their turn.
    """
    bits = random.Random(secrets.token_bytes(32)).getrandbits  # noqa: S311  see above

    def request_id() -> str:
        text = f"{bits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[bits(2)]}{text[17:20]}-{text[20:]}"

    return request_id
