"""Top-k from a larger answer: what the real client sees with over-fetch is what it sees without."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.proxy_process import ProxyProcess
from tests.support.waiting import wait_until_sync
from tests.vendor_sim.dashvector_clients import sdk_client, sdk_endpoints
from tests.vendor_sim.dashvector_package import dashvector
from tests.vendor_sim.dashvector_recorder import Protocol
from tests.vendor_sim.dashvector_runner import DashVectorThreadSim, dashvector_thread

LIMIT = 20


@dataclass
class Rig:
    sim: DashVectorThreadSim
    proxy: ProxyProcess

    def address(self, protocol: Protocol) -> str:
        """Where the proxy speaks *protocol*."""
        return self.proxy.http_url if protocol == "http" else self.proxy.grpc_address

    def direct(self, protocol: Protocol) -> str:
        """Where the vendor does."""
        return self.sim.http_url if protocol == "http" else self.sim.grpc_address

    def queries(self) -> int:
        """How many queries the vendor has seen."""
        return sum(count for name, count in self.sim.asked.items() if "query" in name)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        stack.enter_context(sdk_endpoints())
        sim = stack.enter_context(dashvector_thread())
        with sdk_client("grpc", sim.grpc_address) as client:
            assert client.create("things", 2).code == 0
            docs = [
                dashvector.Doc(id=str(at), vector=[1.0, at / 100], fields={"even": at % 2 == 0}) for at in range(50)
            ]
            assert client.get("things").upsert(docs).code == 0
        proxy = stack.enter_context(
            ProxyProcess(
                dashvector_url=sim.http_url,
                dashvector_grpc_url=f"http://{sim.grpc_address}",
                env={"DASHCACHE_VECTOR_OVERFETCH_TOPK": str(LIMIT)},
            )
        )
        yield Rig(sim, proxy)


def asked(things: Any, **query: Any) -> list[tuple[str, float, Any]]:
    """What the client makes of the answer."""
    answer = things.query(**query)
    assert answer.code == 0, answer.message
    return [(each.id, each.score, each.fields) for each in answer.output]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_smaller_counts_are_served_from_one_larger_answer(rig: Rig, protocol: Protocol) -> None:
    vector = [0.3, 0.7 if protocol == "http" else 0.8]
    with sdk_client(protocol, rig.direct(protocol)) as client:
        things = client.get("things")
        expected = {topk: asked(things, vector=vector, topk=topk) for topk in (1, 5, 10, LIMIT, LIMIT + 1)}
    before = rig.queries()
    with sdk_client(protocol, rig.address(protocol)) as client:
        things = client.get("things")
        assert asked(things, vector=vector, topk=10) == expected[10]  # a miss: asked as 20, cut to 10
        assert rig.queries() == before + 1
        wait_until_sync(lambda: is_kept(rig, things, vector), 5.0, "the answer to be kept")
        served = rig.queries()
        for topk in (1, 5, 10, LIMIT):
            assert asked(things, vector=vector, topk=topk) == expected[topk]
        assert rig.queries() == served
        assert asked(things, vector=vector, topk=LIMIT + 1) == expected[LIMIT + 1]
        assert rig.queries() == served + 1


def is_kept(rig: Rig, things: Any, vector: list[float]) -> bool:
    """Whether a repeated query stays with the proxy."""
    seen = rig.queries()
    asked(things, vector=vector, topk=10)
    return rig.queries() == seen


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_queries_whose_meaning_it_could_change_are_asked_as_they_are(rig: Rig, protocol: Protocol) -> None:
    special: tuple[dict[str, Any], ...] = ({"id": "7", "topk": 3}, {"filter": "even = true", "topk": 4})
    for query in special:
        with sdk_client(protocol, rig.direct(protocol)) as client:
            expected = asked(client.get("things"), **query)
        sent = rig.sim.requests[-1].body
        with sdk_client(protocol, rig.address(protocol)) as client:
            assert asked(client.get("things"), **query) == expected
        assert rig.sim.requests[-1].body == sent


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_refused_query_gets_what_it_would_get_without(rig: Rig, protocol: Protocol) -> None:
    query = {"vector": [1.0, 2.0], "filter": "nothing ~ 1", "topk": 3}
    with sdk_client(protocol, rig.direct(protocol)) as client:
        direct = client.get("things").query(**query)
    with sdk_client(protocol, rig.address(protocol)) as client:
        through = client.get("things").query(**query)
    assert direct.code != 0
    assert (through.code, through.message) == (direct.code, direct.message)
