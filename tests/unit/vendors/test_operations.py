"""The table of operations: complete, and what the rest of the house goes by."""

import dataclasses
from pathlib import Path

import pytest

from proxy.settings.model import Lifetimes, Settings
from proxy.telemetry import labels
from proxy.vendors.dashscope.batch_limits import BatchLimits
from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE, EmbeddingAdapter
from proxy.vendors.dashvector import over_grpc, over_http
from proxy.vendors.operations import OPERATIONS, Kind, named_by, of_vendor, switchable
from proxy.worker.parts import lifetime_s

DOCS = Path(__file__).parents[3] / "docs"


def test_every_route_of_every_adapter_is_an_operation_of_the_table() -> None:
    adapters = [EmbeddingAdapter(dialect, BatchLimits()) for dialect in (NATIVE, COMPATIBLE)]
    asked = {adapter.operation_of("POST", path) for adapter in adapters for path in (NATIVE.path, COMPATIBLE.path)}
    asked |= {route.operation for route in over_http._READS.values()}
    asked |= {method.operation for method in over_grpc._READS.values()}
    assert asked | {"vector-write"} == set(OPERATIONS)


def test_an_operation_that_is_not_in_the_table_has_no_lifetime() -> None:
    with pytest.raises(KeyError):
        lifetime_s(Settings(), "made-up", "a-model")


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_kept_has_a_lifetime_and_what_is_written_has_none(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation.name == name
    if operation.kind is Kind.WRITE:
        assert not operation.lifetime
        assert not operation.is_switchable
        return
    assert operation.lifetime in {field.name for field in dataclasses.fields(Lifetimes)}
    assert lifetime_s(Settings(), name, "any") == operation.lifetime_s > 0


def test_each_vendor_has_its_own() -> None:
    assert of_vendor("dashscope") == named_by("model") == ("embedding",)
    assert of_vendor("dashvector") == named_by("collection") == ("vector-query", "vector-stats", "vector-write")
    assert switchable() == ("embedding", "vector-query", "vector-stats")
    assert labels.upstream_operations(Settings()) == {"dashscope": ("embedding",)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_documentation_names_every_operation(name: str) -> None:
    assert f"`{name}`" in (DOCS / "caching.md").read_text() + (DOCS / "dashvector.md").read_text()
