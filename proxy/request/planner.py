"""
What a request means: its route, its plan, its keys; told from its bytes alone, and therefore remembered.

Equal bytes mean the same as long as the worker lives. Of what may change meanwhile (purges) a plan says under which it
was keyed, and is keyed anew under others; a batch whose plan depends on what the vendor takes today is planned each
time. Nothing here looks into a tier or asks anybody.
"""

import weakref
from dataclasses import dataclass

from cachetools import LRUCache

from proxy.core.answer import Again
from proxy.core.freshness import Directives, directives
from proxy.core.key import Secret, common_digest, item_keys
from proxy.core.plan import Adapter, Pass, PassReason, Read, Write
from proxy.core.plan import Scope as ScopeName
from proxy.core.ports import PurgeSource, Routes, TransportOf
from proxy.core.request import Head, HeaderLines, Request, held_bytes
from proxy.request.credentials import Callers
from proxy.runtime.offload import Heavy

_MAX_ROUTES = 1_024
_MAX_BYTES = 16 << 20
_MAX_BODY_BYTES = 16 * 1024
"""Longer bodies are planned each time: hashing and sending their answers costs more than planning."""
_MAX_HEAD_BYTES = 4 * 1024
_MEMBER_BYTES = 100


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What a request's head says; one object for all whose decisive lines are equal, and compared as such."""

    adapter: Adapter
    upstream: str
    operation: str
    write: Write | None
    wishes: Directives
    objection: PassReason | None
    """Why it is not looked up, as far as the head tells."""
    is_kept: bool
    """Whether the next equal head gets this very object; else nothing that hangs on it is found again."""
    asked: tuple[str, str] = ("", "")
    """Method and target."""


@dataclass(slots=True, eq=False)
class Planned:
    """A planned read with its keys, in the client's order; nothing of it changes but ``again``."""

    route: Route
    plan: Read
    keys: tuple[bytes, ...]
    owner: bytes
    """Whose answer it will be, as a keyed hash."""
    scopes: tuple[bytes, ...]
    purges: tuple[bytes, ...]
    """The tokens that the keys were made with."""
    extent: tuple[str, str, str, tuple[ScopeName, ...]]
    """What purges go by: upstream, operation, model, scopes."""
    size: int
    """Bytes that it takes, about."""
    again: "weakref.ref[Again] | None" = None
    """What answers it out of memory, while somebody holds that: it holds this plan."""

    @property
    def asked(self) -> tuple[str, str]:
        """Method and target."""
        return self.route.asked


class Planner:
    """One per worker; what it remembers is bounded in bytes."""

    def __init__(
        self,
        *,
        routes: Routes,
        callers: Callers,
        transport_of: TransportOf,
        purges: PurgeSource,
        secret: Secret,
        heavy: Heavy | None = None,
    ) -> None:
        self._routes = routes
        self._callers = callers
        self._transport_of = transport_of
        self._purges = purges
        self._secret = secret
        self._heavy = heavy or Heavy()
        self._known_routes: LRUCache[tuple[str, str, str, HeaderLines], Route | None] = LRUCache(_MAX_ROUTES)
        self._planned: LRUCache[tuple[Route, bytes], Planned] = LRUCache(_MAX_BYTES, lambda planned: planned.size)

    def route(self, request: Request) -> Route | None:
        """What its head says; ``None`` for what only passes through."""
        known = request.head
        if known is not None and isinstance(known.meaning, Route):
            return known.meaning
        route = self._looked_up(request)
        if known is not None:
            known.meaning = route
        return route

    def _looked_up(self, request: Request) -> Route | None:
        head = (request.upstream, request.method, request.target, self._routes.decisive(request.headers))
        try:
            return self._known_routes[head]
        except KeyError:
            is_kept = len(request.target) + held_bytes(head[3]) <= _MAX_HEAD_BYTES
            route = self._route(request, is_kept=is_kept)
            if is_kept:
                self._known_routes[head] = route
            return route

    async def plan(self, route: Route, request: Request) -> Planned | Pass:
        """The plan and the keys of *request*, whose body is there; or why it is passed."""
        body = request.body or b""
        is_kept = route.is_kept and len(body) <= _MAX_BODY_BYTES
        known = self._planned.get((route, body)) if is_kept else None
        if known is not None and self.is_current(known):
            return known
        plan = (
            await self._heavy(route.adapter.weight(body), route.adapter.plan, request) if known is None else known.plan
        )
        if isinstance(plan, Pass):
            return plan
        planned = await self.keyed(route, request, plan)
        if is_kept and plan.trial is None:
            self._planned[route, body] = planned
        return planned

    def recall(self, head: Head, body: bytes) -> Planned | None:
        """The plan of a request with this *head* and *body*, if it is remembered."""
        route = head.meaning
        if not isinstance(route, Route) or len(body) > _MAX_BODY_BYTES:
            return None
        try:
            return self._planned[route, body]
        except KeyError:
            return None

    async def keyed(self, route: Route, request: Request, plan: Read) -> Planned:
        """*plan* with one key per item: deployment secret, purges, upstream, credential, all fields, and the item."""
        origin = self._transport_of(request).origin.encode()
        extent = (request.upstream, plan.operation, plan.model, plan.scopes)
        purges = self._purges.tokens_for(*extent)
        common = common_digest(self._secret, (*purges, origin, plan.operation.encode(), *plan.identity))
        body = request.body or b""
        keys = await self._heavy(len(body), item_keys, self._secret, common, plan.items)
        owner = self._callers.owner(request, plan.credential)
        return Planned(
            route, plan, keys, owner, self.scopes(request, plan.scopes), purges, extent, _size(plan, body, len(keys))
        )

    def is_current(self, planned: Planned) -> bool:
        """Whether no purge has come since *planned* was keyed."""
        return planned.purges == self._purges.tokens_for(*planned.extent)

    def scopes(self, request: Request, names: "tuple[ScopeName, ...]") -> tuple[bytes, ...]:
        """What the answer to *request* hangs on, or what it makes stale, as Redis may see it."""
        return tuple(self._callers.scope(request, name) for name in names)

    def _route(self, request: Request, *, is_kept: bool) -> Route | None:
        adapter = self._routes(request.upstream, request.method, request.path)
        if adapter is None:
            return None
        operation = adapter.operation_of(request.method, request.path)
        write = adapter.write_of(request.method, request.path, request.headers)
        wishes = directives(request)
        objection = PassReason.NO_STORE if wishes.no_store else adapter.precheck(request) if write is None else None
        return Route(
            adapter, request.upstream, operation, write, wishes, objection, is_kept, (request.method, request.target)
        )


def _size(plan: Read, body: bytes, keys: int) -> int:
    """Bytes that *plan* and its keys take, about: members and numbers of a JSON *body* weigh more than their text."""
    members = body.count(b",") + body.count(b":") + body.count(b"[") + body.count(b"{")
    return 3_000 + 6 * len(body) + _MEMBER_BYTES * members + 2 * sum(map(len, plan.identity)) + 200 * keys
