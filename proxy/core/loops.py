"""
Requests that come back: each that goes up says through whom it went, so a circle is seen where it closes.

Source: RFC 8586, ``CDN-Loop``. It says nothing else, changes no answer and is part of no key.
"""

import secrets

from proxy.core.request import HeaderLines, list_items

LINE = b"CDN-Loop"
_LOW = LINE.lower()


def new_id() -> bytes:
    """A name for one proxy, by which no other is known: two in a row are no circle, whatever they share."""
    return f"dashcache-{secrets.token_hex(8)}".encode("ascii")


def has_passed(lines: HeaderLines, own_id: bytes) -> bool:
    """Whether *lines* tell that the request went through the proxy *own_id* before."""
    values = tuple([value for name, value in lines if name.lower() == _LOW])
    return bool(values) and own_id.decode("ascii") in [item.partition(";")[0].strip() for item in list_items(values)]
