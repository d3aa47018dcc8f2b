"""
A gRPC server of the library's whose loop may end while the server goes on.

The library (grpcio 1.85) reads the name of each call in the loop that takes calls for all connections. A name that is
not UTF-8 raises there, the loop ends, and the library then shuts the whole server down: every connection gets GOAWAY,
and the calls that cross it are cancelled. Anybody who can connect can send such a name, in one frame.

So the two things that one ``AioServer`` of the library does are done here by two: a listener, which has the port and
the connections and takes no call, and a dispatcher, which has neither and takes the listener's calls. When a name ends
the dispatcher's loop, the call is cancelled as nobody holds it any more, another dispatcher takes its place within a
millisecond, and the listener does not notice. ``docs/decisions/0025-grpc-connections.md`` tells what else was tried.

This leans on names of ``grpc._cython.cygrpc`` that are not public, so ``pyproject.toml`` holds the library to 1.85.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.runtime.tasks import Tasks

# isort: split
from proxy.transport.grpc import Options  # before the library: see there

# isort: split
from grpc._cython import cygrpc

_RENEW_S = 0.25
"""Between two dispatchers after an error that is not a call's; it may last."""


class GrpcServer:
    """
    One port.

    *handler* is a ``grpc.GenericRpcHandler``, *on_unreadable* is told of each call whose name cannot be read, and
    *on_failed* of errors that should never be. The dispatchers that have ended are put away in *tasks*.
    """

    def __init__(
        self,
        handler: object,
        options: Options,
        *,
        tasks: Tasks,
        on_unreadable: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._handler = handler
        self._tasks = tasks
        self._on_unreadable = on_unreadable
        self._on_failed = on_failed
        self._listener = _Listener(*_arguments(None, options))
        self._dispatcher: Any = None

    async def open(self, address: str, credentials: Any = None) -> int:  # noqa: ANN401  grpc.ServerCredentials
        """Bind *address* and serve; the port's number. Raises RuntimeError when the address cannot be had."""
        where = address.encode("ascii")
        number: int = (
            self._listener.add_insecure_port(where)
            if credentials is None
            else self._listener.add_secure_port(where, credentials)
        )
        if not number:
            raise RuntimeError(f"cannot listen on {address}")
        await self._listener.start()
        await self._dispatch()
        return number

    async def stop(self, grace_s: float) -> None:
        """Take no calls any more; give running ones *grace_s* seconds, then cancel them."""
        await self._listener.shutdown(grace_s)
        await self._dispatcher.shutdown(None)

    async def _dispatch(self) -> None:
        self._dispatcher = _Dispatcher(*_arguments(self._handler, ()))
        self._dispatcher.serve(self._listener, self._ended)
        await self._dispatcher.start()

    async def _ended(self, error: Exception) -> None:
        """The loop of the present dispatcher has ended by *error*, and is replaced."""
        ended = self._dispatcher
        if isinstance(error, UnicodeDecodeError):
            self._on_unreadable()
        else:
            self._on_failed(error)
            await asyncio.sleep(_RENEW_S)
        if self._listener.is_running():
            await self._dispatch()
        self._tasks.start(ended.shutdown(None))


class _Waiting(cygrpc.AioServer):  # type: ignore[misc]
    """A server of the library's that has no call to wait for, until it is shut down."""

    _nothing: "asyncio.Future[None] | None" = None

    def _wait_for_nothing(self) -> "asyncio.Future[None]":
        self._nothing = asyncio.get_running_loop().create_future()
        return self._nothing

    async def _start_shutting_down(self) -> None:
        if self._nothing is not None and not self._nothing.done():
            self._nothing.set_exception(cygrpc._RequestCallError())  # noqa: SLF001  what the loop takes for an end
        await super()._start_shutting_down()


class _Listener(_Waiting):
    """Has a port and its connections. The calls that come wait in it until the dispatcher takes them."""

    def _make_request_call_future(self, _method: bytes | None) -> "asyncio.Future[None]":
        return self._wait_for_nothing()

    def take_call(self) -> "asyncio.Task[Any]":
        """The next call, when there is one."""
        return asyncio.get_running_loop().create_task(self._request_call())


class _Dispatcher(_Waiting):
    """Takes a listener's calls, reads their names, and runs the handler for each."""

    _listener: _Listener
    _on_ended: "Callable[[Exception], Any]"

    def serve(self, listener: _Listener, on_ended: "Callable[[Exception], Any]") -> None:
        """Take the calls of *listener*, from ``start`` on; *on_ended* is awaited when an error ends this."""
        self._listener, self._on_ended = listener, on_ended

    def _make_request_call_future(self, _method: bytes | None) -> "asyncio.Future[Any]":
        return self._listener.take_call() if self._listener.is_running() else self._wait_for_nothing()

    async def _server_main_loop(self, started: "asyncio.Future[bool]") -> None:
        try:
            await super()._server_main_loop(started)
        except Exception as error:  # noqa: BLE001  whatever it was, the calls of others go on
            await self._on_ended(error)


def _arguments(handler: object | None, options: Options) -> tuple[Any, ...]:
    """What the library's server is made with: loop, no threads, handlers, no interceptors, options, any number."""
    return asyncio.get_running_loop(), None, () if handler is None else (handler,), (), options, None
