"""S17 for vectors: a token that DashVector has refused, over either protocol and in any request, gets no hits."""

import asyncio
from typing import Any

import pytest

from tests.consistency.calls import PROTOCOLS, Call, Protocol
from tests.consistency.rig import ANN, BOB, Rig, all_warm, warm

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOW: list[tuple[Protocol, dict[str, Any]]] = [
    ("http", {}),
    ("http", {"unauthorized_status": 403, "unauthorized_code": 403}),
    ("http", {"unauthorized_status": 200, "unauthorized_code": 401}),
    ("grpc", {}),
    ("grpc", {"unauthenticated_trailers": False}),
]


@pytest.mark.parametrize("operation", ["query_doc", "upsert_doc", "describe_collection"])
@pytest.mark.parametrize(("protocol", "settings"), HOW, ids=str)
async def test_s17_a_refused_token_gets_no_hits(
    pair: Rig, protocol: Protocol, settings: dict[str, Any], operation: str
) -> None:
    known, new = pair.vendor.create(), pair.vendor.create()
    read = Call("query_doc", known)
    await all_warm(pair.doors(), [read])
    pair.vendor.healthy(refused_tokens=frozenset({ANN}), **settings)
    assert (await pair.door(protocol).ask(read)).is_hit, "the vendor has refused nothing yet"
    seen = await pair.door(protocol).ask(Call(operation, new, version=2))
    assert not seen.is_success
    for door in pair.doors(ANN):
        answer = await door.ask(read)
        assert not answer.is_success, (door.protocol, answer)
        assert not answer.is_hit
    hits = await asyncio.gather(*(door.ask(read) for door in pair.doors(BOB)))
    assert all(answer.is_hit for answer in hits)
    pair.vendor.healthy()
    for protocol in PROTOCOLS:  # of both replicas, as each has to see it accepted
        for replica in (0, 1):
            await warm(pair.door(protocol, ANN, replica), read)
