"""
The heap of a worker: what is free in it goes back to the system.

The allocator gives back what is free at the heap's end, but a burst leaves its room in the middle: 256 clients' misses
left 83 MiB where 76 are needed. ``MALLOC_TRIM_THRESHOLD_`` is about the end, too, and changed nothing.

What is large gets pages of its own, which go back when it is let go. Left alone, the allocator puts it into the heap
after the first few: bodies of 200 MiB, of which 32 could be held, left 173 MiB.
"""

import asyncio
import ctypes
import time

EVERY_S = 10.0
# It takes half a millisecond, in which nobody is answered; 25 for the holes of hundreds of megabytes.
_SHARE = 0.001
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
_OPTION = getattr(ctypes.CDLL(None), "mallopt", None)
"""Both are None where the C library has no such thing: musl, macOS."""
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 128 * 1024  # malloc.h, and glibc's own first threshold


def keep_large_apart() -> None:
    """To be called once, at the start of a worker."""
    if _OPTION is not None:
        _OPTION(_MMAP_THRESHOLD, _LARGE_BYTES)


async def give_back() -> None:
    """Every few seconds, for ever, and so seldom that it takes no more than a thousandth of the time."""
    pause_s = EVERY_S
    while _TRIM is not None:
        await asyncio.sleep(pause_s)
        began_s = time.perf_counter()
        _TRIM(0)
        pause_s = max(EVERY_S, (time.perf_counter() - began_s) / _SHARE)
