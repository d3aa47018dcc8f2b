"""Who sends requests, known by keyed hashes only, and what the upstream has said of them."""

from collections.abc import Callable, Mapping

from proxy.cache.credential_status import Standings
from proxy.cache.recently_accepted import Leases
from proxy.core.key import Secret, common_digest, item_key, prefixed
from proxy.core.plan import Scope
from proxy.core.request import Request


class Callers:
    """
    The credentials that a worker has seen.

    *endpoints* names what each upstream is, whatever protocol leads to it: what a write makes stale hangs on that name,
    and so does what the upstream thinks of a credential. *credential_of* tells who sends a request.
    """

    def __init__(
        self,
        *,
        secret: Secret,
        endpoints: Mapping[str, str],
        credential_of: Callable[[Request], bytes],
        leases: Leases,
        standings: Standings,
    ) -> None:
        self._secret = secret
        self._endpoints = {
            upstream: common_digest(secret, (b"endpoint", name.encode())) for upstream, name in endpoints.items()
        }
        self._credential_of = credential_of
        self._leases = leases
        self._standings = standings
        self.mark = standings.mark

    def owner(self, request: Request, credential: bytes) -> bytes:
        """Whose answer it is."""
        return item_key(self._secret, self._endpoints[request.upstream], prefixed((b"credential", credential)))

    def scope(self, request: Request, name: Scope) -> bytes:
        """A scope as Redis may see it: shared by protocols, credentials and replicas, and telling no name."""
        return item_key(self._secret, self._endpoints[request.upstream], prefixed(part.encode() for part in name))

    def is_known(self, owner: bytes) -> bool:
        """Whether the upstream has accepted *owner* lately."""
        return self._leases.has(owner)

    def known(self, request: Request, owner: bytes | None = None) -> bytes:
        """The *owner*, or else the sender of *request*, if the upstream has accepted it lately; empty for strangers."""
        if owner is None:
            owner = self.owner(request, self._credential_of(request))
        return owner if self._leases.has(owner) else b""

    def served(self, owner: bytes) -> None:
        """The upstream has just done what *owner* asked for, perhaps for another request that this one waited for."""
        self._leases.note(owner)

    def accepted(self, owner: bytes, mark: bytes | None) -> None:
        """The upstream has answered *owner* in a request that was sent on when *mark* was known."""
        self._standings.accepted(owner, mark)

    async def refused(self, request: Request) -> None:
        """The upstream does not accept who sent *request*: no hits, and no word before a write, until it does."""
        owner = self.owner(request, self._credential_of(request))
        self._leases.end(owner)
        await self._standings.refused(owner)
