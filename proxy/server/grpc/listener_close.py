"""
How a port is given up without breaking connections that a client takes for open.

The kernel shakes hands by itself and queues what nobody has accepted yet; when a listening socket is closed, it resets
the queue and every handshake under way. So nothing new is let in first, then the queue is emptied, then it is closed.
"""

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SETTLE_S = 0.25
"""For handshakes under way to end, at any round trip up to this, and for the queue to be emptied."""

_LOOK_S = 0.02

_SO_ATTACH_FILTER = 26  # Linux, asm-generic/socket.h; Python has no name for it
_SO_ACCEPTCONN = 30
# Classic BPF over the TCP header: a SYN without ACK is dropped, as if it had been lost. The client's kernel sends it
# again after a second; by then the port is another worker's, or refuses.
_LOAD_FLAGS, _MASK, _IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06  # ldb [k], and #k, jeq #k, ret #k
_SYN, _SYN_ACK, _FLAGS_AT, _ALL = 0x02, 0x12, 13, 0x40000
_DROP_SYN = (
    (_LOAD_FLAGS, 0, 0, _FLAGS_AT),
    (_MASK, 0, 0, _SYN_ACK),
    (_IF_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, _ALL),
)


def let_nobody_in(listener: socket.socket) -> None:
    """No new handshake begins on *listener*; those under way end, and what is queued can be accepted."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(kept))
    # Elsewhere than on Linux, or where it is forbidden, a handshake in these milliseconds is reset.
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


async def until(condition: Callable[[], bool], limit_s: float, look_s: float = _LOOK_S) -> None:
    """Return when *condition* holds, which is looked at every *look_s* seconds, or after *limit_s* seconds."""
    ends_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < ends_s:  # noqa: ASYNC110  a few times at the end of a process
        await asyncio.sleep(look_s)


class Found(NamedTuple):
    """A socket that belongs to somebody else in this process: the number under which that one knows it, and a copy."""

    number: int
    copy: socket.socket


Address = tuple[str, int]
"""An IP address and a port's number. Two ports of one number may be of two protocols, at two addresses."""


def listening_on(addresses: Collection[Address]) -> list[Found]:
    """Sockets of this process that listen there, for a library that keeps its own; the copies are to be closed."""
    wanted = {_plain(address) for address in addresses}
    return _found(lambda one: _listens(one) and _plain(one.getsockname()) in wanted)


def connected_to(addresses: Collection[Address]) -> int:
    """How many connections this process has accepted there and not closed; dear where there are thousands."""
    wanted = {_plain(address) for address in addresses}
    everywhere = {port for host, port in wanted if host is None}

    def is_ours(one: socket.socket) -> bool:
        host, port = _plain(one.getsockname()) if _is_tcp(one) and not _listens(one) else (None, -1)
        return port in everywhere or (host, port) in wanted

    found = _found(is_ours)
    for _, copy in found:
        copy.close()
    return len(found)


def connections_from(peers: Collection[str]) -> dict[str, int]:
    """The files of this process that are connections from *peers*, which are named as the gRPC library names them."""
    numbers: dict[str, int] = {}

    def is_wanted(one: socket.socket) -> bool:
        return _is_tcp(one) and not _listens(one) and _peer(one) in peers

    for number, copy in _found(is_wanted):
        numbers[_peer(copy)] = number
        copy.close()
    return numbers


def _peer(one: socket.socket) -> str:
    """``ipv4:127.0.0.1:50051``, or ``ipv6:%5B::1%5D:50051``; empty without a connection."""
    try:
        host, port = one.getpeername()[:2]
    except OSError:
        return ""
    plain, _ = _plain((host, port))
    return f"ipv6:%5B{plain}%5D:{port}" if plain is not None and ":" in plain else f"ipv4:{plain}:{port}"


def _plain(address: Sequence[Any]) -> tuple[str | None, int]:
    """*address* in one form, whatever the socket's family; None stands for all hosts."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    host = getattr(host, "ipv4_mapped", None) or host
    return None if host.is_unspecified else str(host), address[1]


def take_away(found: Found) -> None:
    """
    Close a listening socket under the hands of its owner, who is left with one that does nothing.

    For a library that can only stop listening by ending its connections too.
    """
    nothing = socket.socket(found.copy.family, socket.SOCK_STREAM)
    with found.copy, nothing, contextlib.suppress(OSError):
        # Should the owner have closed it meanwhile, the number may be a connection's by now.
        if os.path.sameopenfile(found.number, found.copy.fileno()):
            os.dup2(nothing.fileno(), found.number, inheritable=False)


def _found(wanted: Callable[[socket.socket], bool]) -> list[Found]:
    own = Path("/proc/self/fd")
    found: list[Found] = []
    for number in [int(path.name) for path in own.iterdir()] if own.is_dir() else []:
        # A number on the list may have been the list's own, and now be that of a copy.
        copy = _copy(number) if all(number != known.copy.fileno() for known in found) else None
        if copy is not None and wanted(copy):
            found.append(Found(number, copy))
        elif copy is not None:
            copy.close()
    return found


def _copy(number: int) -> socket.socket | None:
    """The open file of this *number* as a socket of our own; None for what is none."""
    try:
        copy = os.dup(number)
    except OSError:  # gone meanwhile
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def _is_tcp(one: socket.socket) -> bool:
    return one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM


def _listens(one: socket.socket) -> bool:
    return _is_tcp(one) and bool(one.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN))
