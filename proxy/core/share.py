"""The sender of a request, as far as it matters for a fair turn at an upstream."""

import contextvars
from typing import NamedTuple


class Share(NamedTuple):
    """
    Those who have one share together: an address, and in it a credential that the upstream has accepted lately.

    All others at an address have one share in common, under an empty credential: names that nobody has checked can be
    made up in any number.
    """

    address: str = ""
    credential: bytes = b""


NOBODY = Share()
"""Of requests that no client has sent."""

ADDRESS = contextvars.ContextVar("ADDRESS", default="")
"""The client's IP address; tasks that begin for a request inherit it."""

SHARE = contextvars.ContextVar[Share]("SHARE")
"""The share of the request that is being sent."""
