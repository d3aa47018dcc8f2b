"""
The unmodified client of DashVector, its default protocol included, where the endpoint's name leads to the proxy.

It takes no port: over gRPC it calls 443, over HTTP 80 or 443. So it runs in namespaces of its own, which needs root.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.namespace_rig import LONG_WALK, READS, WALK, Phase, Protocol, run_rig
from tests.support.namespace import require_namespaces
from tests.vendor_sim.dashvector_operations import OPERATIONS

READ_OPERATIONS = {
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
WRITE_OPERATIONS = set(OPERATIONS) - READ_OPERATIONS
# Among refusals these are also asked in earnest, and may then be answered from the cache.
KEPT_AMONG_REFUSALS = {"describe_collection", "get_version"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("phases", [WALK, pytest.param(LONG_WALK, marks=pytest.mark.slow)], ids=["short", "long"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_operation_is_answered_as_without_the_proxy_and_known_reads_ask_the_vendor_nothing(
    protocol: Protocol, phases: Sequence[str], tmp_path: Path
) -> None:
    require_namespaces()
    assert importlib.metadata.version("dashvector") == "1.0.23"
    walks = run_rig(protocol, phases, tmp_path)
    without = walks["without"]
    assert_walked_everywhere(without, phases)
    for name in ("plain", "tls"):
        assert list(differences(without, walks[name])) == [], name
        assert_known_reads_were_hits(without, walks[name])
        assert_nothing_else_was_kept_back(without, walks[name])


def assert_walked_everywhere(without: Sequence[Phase], phases: Sequence[str]) -> None:
    """The walk is what it promises: every operation, every read among those that are known, and all reads succeed."""
    assert [phase.name for phase in without] == list(phases)
    assert set().union(*(phase.asked for phase in without)) == set(OPERATIONS)
    for phase in without:
        if phase.name in READS:
            assert set(phase.asked) == READ_OPERATIONS
            assert [name for name, told in phase.told if not is_success(told)] == []


def assert_known_reads_were_hits(without: Sequence[Phase], behind: Sequence[Phase]) -> None:
    """What is read a second time, the vendor is not asked, and the proxy says that it knew all of it."""
    names = [phase.name for phase in without]
    again = [number for number, name in enumerate(names) if number and name in READS and name == names[number - 1]]
    assert [behind[number].asked for number in again] == [{}] * len(again)
    assert [behind[number].outcomes for number in again] == [{"hit": calls(without[number])} for number in again]


def assert_nothing_else_was_kept_back(without: Sequence[Phase], behind: Sequence[Phase]) -> None:
    """The proxy saw every call; each write reached the vendor, and each read that it refuses did so every time."""
    for alone, proxied in zip(without, behind, strict=True):
        assert sum(proxied.outcomes.values()) == calls(alone)
        assert counts(proxied, WRITE_OPERATIONS) == counts(alone, WRITE_OPERATIONS)
        if alone.name == "refuse":
            refused = READ_OPERATIONS - KEPT_AMONG_REFUSALS
            assert counts(proxied, refused) == counts(alone, refused)


def differences(without: Sequence[Phase], behind: Sequence[Phase]) -> Iterator[Any]:
    """What is not equal: the phase, the call, what it told without the proxy, and behind it."""
    for number, (alone, proxied) in enumerate(zip(without, behind, strict=True)):
        assert [name for name, _ in alone.told] == [name for name, _ in proxied.told]
        for (name, expected), (_, told) in zip(alone.told, proxied.told, strict=True):
            if told != expected:
                yield f"{number}, {alone.name}: {name}", expected, told


def is_success(told: Any) -> bool:
    return bool(told["is_true"] and told["code"] == ["int", 0] and told["has_request_id"])


def calls(phase: Phase) -> int:
    return sum(phase.asked.values())


def counts(phase: Phase, operations: set[str]) -> dict[str, int]:
    return {name: count for name, count in phase.asked.items() if name in operations}
