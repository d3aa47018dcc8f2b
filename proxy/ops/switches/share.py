"""
Modes between replicas: one Redis key that each replica reads twice a second and writes when it knows better.

The value is sealed with the deployment's secret. Two replicas that write at once overwrite each other, and the one
whose rule is missing sees so half a second later and writes again; merging takes the later rule in each scope, so all
end with the same rules in whatever order things happen. While Redis is down everything stays as it is, here.
"""

import asyncio

from proxy.core.key import Secret, item_key
from proxy.core.modes import Modes
from proxy.ops.processes.redis_link import LinkDown, RedisLink
from proxy.ops.switches.book import ModeBook
from proxy.ops.switches.live import MAX_STORED_BYTES, BadRules, seal, unseal
from proxy.ops.telemetry.log_output import logger

POLL_S = 0.5


class ModeShare:
    """Keeps *book* and the key in step while ``run`` runs."""

    def __init__(self, link: RedisLink, secret: Secret, book: ModeBook, poll_s: float = POLL_S) -> None:
        self._link = link
        self._secret = secret
        self._book = book
        self._poll_s = poll_s
        # Deployments with different secrets cannot read each other's rules; with one key they would fight over it.
        mark = item_key(secret, b"modes", b"").hex()[:16]
        self.key = link.prefix + b":modes:" + mark.encode()
        self._is_up = True
        self._refused = False

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.synchronise()
            await asyncio.sleep(self._poll_s)

    async def synchronise(self) -> bool:
        """One exchange: read, merge, write if Redis knows less. Whether Redis now holds what we hold."""
        try:
            stored = await self._link.read(self.key, MAX_STORED_BYTES)
            theirs = self._opened(stored)
            await self._book.merge(theirs)
            ours = self._book.live.switched
            if ours.rules and ours != theirs:
                await self._link.write(self.key, seal(self._secret, self.key, ours))
        except LinkDown as error:
            self._report(up=False, kind=error.kind)
            return False
        self._report(up=True, kind="")
        return True

    def _opened(self, stored: bytes) -> Modes:
        if not stored:
            return Modes()
        try:
            theirs = unseal(self._secret, self.key, stored)
        except BadRules as error:
            if not self._refused:
                self._refused = True
                logger().warning("shared_modes_refused", error=str(error))
            return Modes()
        self._refused = False
        return theirs

    def _report(self, *, up: bool, kind: str) -> None:
        """One line per change, none per poll."""
        if up == self._is_up:
            return
        self._is_up = up
        if up:
            logger().info("modes_shared_again")
        else:
            logger().warning("modes_not_shared", error=kind)
