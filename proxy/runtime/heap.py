"""
The heap of a worker: what is free in it goes back to the system.

The allocator gives back what is free at the heap's end, but a burst leaves its room in the middle: 256 clients' misses
left 83 MiB where 76 are needed. ``MALLOC_TRIM_THRESHOLD_`` is about the end, too, and changed nothing.
"""

import asyncio
import ctypes
import time

EVERY_S = 10.0
# It takes half a millisecond, in which nobody is answered; 25 for the holes of hundreds of megabytes.
_SHARE = 0.001
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""None where the C library has no such thing: musl, macOS."""


async def give_back() -> None:
    """Every few seconds, for ever, and so seldom that it takes no more than a thousandth of the time."""
    pause_s = EVERY_S
    while _TRIM is not None:
        await asyncio.sleep(pause_s)
        began_s = time.perf_counter()
        _TRIM(0)
        pause_s = max(EVERY_S, (time.perf_counter() - began_s) / _SHARE)
