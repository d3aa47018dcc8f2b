"""
The unmodified client of DashVector, its default protocol included, where the endpoint's name leads to the proxy.

It takes no port: over gRPC it calls 443, over HTTP 80 or 443. So it runs in namespaces of its own, which needs root.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.namespace_rig import COLD, ENDPOINT, REFUSED, WALK, WARM, Phase, Protocol, run_rig
from tests.support.namespace import require_namespaces
from tests.support.namespace_certificate import Certificate, certificate_for
from tests.vendor_sim.dashvector_operations import OPERATIONS

READS = {
    "describe_collection",
    "describe_partition",
    "fetch_doc",
    "get_version",
    "list_collections",
    "list_partitions",
    "query_doc",
    "query_doc_group_by",
    "stats_collection",
    "stats_partition",
}
WRITES = set(OPERATIONS) - READS
# In a walk of refusals these are also asked in earnest, and may then be answered from the cache.
MAY_BE_KEPT = {"describe_collection", "get_version"}


@pytest.fixture(params=["plain text", "TLS"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path) -> Certificate | None:
    return certificate_for(ENDPOINT, tmp_path) if request.param == "TLS" else None


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_operation_is_answered_as_without_the_proxy_and_reads_come_from_the_cache(
    protocol: Protocol, certificate: Certificate | None, tmp_path: Path
) -> None:
    require_namespaces()
    without, behind = run_rig(protocol, tmp_path, certificate)
    assert [phase.name for phase in without] == [phase.name for phase in behind] == list(WALK)
    assert list(differences(without, behind)) == []

    assert set().union(*(phase.asked for phase in without)) == set(OPERATIONS)
    assert set(without[COLD].asked) == set(without[WARM].asked) == set(behind[COLD].asked) == READS
    assert all(is_success(told) for _, told in without[COLD].told)
    assert behind[WARM].asked == {}
    assert behind[WARM].outcomes == {"hit": calls(without[WARM])}
    for alone, proxied in zip(without, behind, strict=True):
        assert sum(proxied.outcomes.values()) == calls(alone), "a call went past the proxy"
        assert counts(proxied, WRITES) == counts(alone, WRITES)
    for number in (REFUSED, REFUSED + 1):
        assert counts(behind[number], READS - MAY_BE_KEPT) == counts(without[number], READS - MAY_BE_KEPT)


def differences(without: Sequence[Phase], behind: Sequence[Phase]) -> Iterator[Any]:
    """What is not equal: the phase, the call, what it told without the proxy, and behind it."""
    for number, (alone, proxied) in enumerate(zip(without, behind, strict=True)):
        assert [name for name, _ in alone.told] == [name for name, _ in proxied.told]
        for (name, expected), (_, told) in zip(alone.told, proxied.told, strict=True):
            if told != expected:
                yield f"{number} {alone.name}: {name}", expected, told


def is_success(told: Any) -> bool:
    return bool(told["is_true"] and told["code"] == ["int", 0] and told["has_request_id"])


def calls(phase: Phase) -> int:
    return sum(phase.asked.values())


def counts(phase: Phase, operations: set[str]) -> dict[str, int]:
    return {name: count for name, count in phase.asked.items() if name in operations}
