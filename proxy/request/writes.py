"""
Writes are forwarded once; what hangs on them is made stale before the upstream can act on them, and after.

Nobody voids by accident. Before, only for a credential that the upstream has accepted lately, and only when the last of
the request is about to go out; after, unless the upstream refused it, knows no such thing, or never had all of it.
"""

import asyncio
import dataclasses

from proxy.cache.invalidation.tier import Effect, NotTold, VoidableTier
from proxy.core.answer import Answer, Body
from proxy.core.errors import ClientError, ErrorCode, ProxyError, UpstreamError
from proxy.core.held_bytes import HeldBytes
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import NotStorable, Verdict, Write
from proxy.core.ports import UpstreamReply
from proxy.core.relay import content_of, relayed, start_of
from proxy.core.request import Request
from proxy.core.sending import Sending
from proxy.request.ask import Upstreams
from proxy.request.credentials import Callers
from proxy.request.planner import Planner
from proxy.runtime.tasks import Tasks

_EFFECTS = {
    Verdict.DONE: Effect.KNOWN,
    Verdict.FAILED: Effect.KNOWN,
    Verdict.UNKNOWN: Effect.UNKNOWN,
    Verdict.REFUSED: Effect.NONE,
    Verdict.NO_ROUTE: Effect.NONE,
    Verdict.NOT_SENT: Effect.NONE,
}

_Ended = tuple[Answer | ProxyError, Verdict]
"""
The client's answer, and the verdict on the write.

Our errors are returned, as an exception of a task that nobody awaits any more would be lost.
"""


class Writer:
    """Forwards writes; one instance per worker."""

    def __init__(
        self,
        *,
        planner: Planner,
        upstreams: Upstreams,
        callers: Callers,
        voidable: VoidableTier,
        tasks: Tasks,
        max_answer_bytes: int,
        held: HeldBytes,
    ) -> None:
        self._planner = planner
        self._upstreams = upstreams
        self._callers = callers
        self._voidable = voidable
        self._tasks = tasks
        self._max_answer_bytes = max_answer_bytes
        self._held = held

    async def answer(self, request: Request, body: Body, outcome: Outcome, write: Write) -> Answer:
        """
        Forward *write* once, as one unit with what it makes stale: a client that leaves cuts neither.

        Raises:
            ProxyError: no answer could be had.
        """
        outcome.state = CacheState.WRITE
        unit = self._tasks.start(self._unit(request, body, outcome, write), is_awaited=True)
        try:
            ended: Answer | ProxyError = await asyncio.shield(unit)
        except asyncio.CancelledError:
            unit.add_done_callback(_let_go)
            raise
        if isinstance(ended, ProxyError):
            raise ended
        return ended

    async def _unit(self, request: Request, body: Body, outcome: Outcome, write: Write) -> Answer | ProxyError:
        scopes, owner = self._planner.scopes(request, write.scopes), self._callers.owner(request, write.credential)
        is_known = self._callers.is_known(owner)

        async def announce() -> None:
            # A stranger's write must not void what others use before the upstream has said what it thinks of it.
            if is_known:
                await self._voidable.announce(scopes)

        def effect(ended: _Ended) -> Effect:
            # Without a credential it is a stranger's, unless the upstream accepts even those.
            is_strange = not (write.has_credential or is_known)
            return Effect.NONE if is_strange and ended[1] is not Verdict.DONE else _EFFECTS[ended[1]]

        try:
            answer, verdict = await self._voidable.writing(
                scopes, lambda: self._forward(request, Sending(body, announce), outcome, write), effect=effect
            )
        except NotTold:
            return UpstreamError(ErrorCode.NOT_INVALIDATED, "cached answers cannot be made stale just now", 503)
        finally:
            outcome.redis_ok = not self._voidable.is_pending(scopes)
        if verdict is Verdict.DONE:
            self._callers.served(owner)
        elif verdict is Verdict.REFUSED:
            await self._callers.refused(request)
        return answer

    async def _forward(self, request: Request, sending: Sending, outcome: Outcome, write: Write) -> _Ended:
        hold = self._held.hold()
        try:
            reply = await self._upstreams.send(dataclasses.replace(request, body=None), outcome, sending)
            text, rest = await start_of(reply, self._max_answer_bytes, hold)
        except ProxyError as error:
            if sending.objection is not None:
                raise sending.objection from None
            return error, _without_answer(error, is_whole=sending.is_whole)
        finally:
            hold.end()
        verdict = self._verdict(write, reply, text)
        if verdict in (Verdict.FAILED, Verdict.UNKNOWN) and not sending.is_whole:
            verdict = Verdict.NOT_SENT
        return relayed(reply, text if rest is None else rest), verdict

    def _verdict(self, write: Write, reply: UpstreamReply, text: bytes) -> Verdict:
        grpc_code = reply.grpc_status.code if reply.grpc_status is not None else None
        try:
            content = content_of(reply, text, self._max_answer_bytes)
        except NotStorable:
            content = b""
        return write.verdict(reply.status, grpc_code, content)


def _without_answer(error: ProxyError, *, is_whole: bool) -> Verdict:
    """The verdict on a write that ended with an *error* of ours; *is_whole*: all of it was on its way."""
    is_unseen = isinstance(error, ClientError) or (isinstance(error, UpstreamError) and error.is_unseen)
    return Verdict.UNKNOWN if is_whole and not is_unseen else Verdict.NOT_SENT


def _let_go(unit: "asyncio.Task[Answer | ProxyError]") -> None:
    """Of the answer to a write whose client has gone."""
    if not unit.cancelled() and unit.exception() is None and isinstance(answer := unit.result(), Answer):
        answer.close()
