"""The places of a team of workers, and the processes that fill them, as ``workers`` and ``heartbeat`` know them."""

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.control.channel import Channel, Hello, ToSupervisor
from proxy.supervisor.silence import Silence

Sockets = list[socket.socket | None]
Greeting = Callable[[int], Hello]
"""The number of a place to the first message for its worker."""


@dataclass(slots=True, eq=False)
class Place:
    """
    One place in the team: always taken, until all stop. Only the current *keeper* fills it.

    *hello* is of the settings that are in force here: while others are put in force, not every place has the same.
    """

    number: int
    hello: Greeting
    sockets: Sockets = field(default_factory=list)
    keeper: "asyncio.Task[None] | None" = None
    worker: "Worker | None" = None


@dataclass(slots=True, eq=False)
class Worker:
    """One running process."""

    place: Place
    process: asyncio.subprocess.Process
    channel: Channel[ToSupervisor]
    ended: "asyncio.Task[int] | None" = None
    linger_s: float = 0.0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has been told to end."""
    serves: bool = False
    confirmed: int = 0
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever the worker has said something or is gone; whoever waits clears it."""
    silence: Silence = field(default_factory=Silence)
    started_mono_s: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started_mono_s
