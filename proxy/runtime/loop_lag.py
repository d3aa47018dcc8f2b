"""How late the event loop is: whatever stops it stops every request of the worker."""

import asyncio
from collections.abc import Callable

EVERY_S = 0.01


async def watch_loop(lag: Callable[[float], None]) -> None:
    """Tell *lag*, a hundred times a second, by how many seconds a timer was late."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        lag(max(0.0, loop.time() - due_s))
