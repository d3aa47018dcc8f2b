"""C6: a write counts whatever door it takes; and who may void what others use."""

import asyncio
import itertools

import pytest

from tests.consistency.calls import DOCUMENTS, PROTOCOLS, Answer, Call, Door, Protocol, grpc_form
from tests.consistency.rig import ANN, BOB, Rig, all_warm, warm
from tests.consistency.vendor import STRANGER
from tests.support.raw_client import RawClient, request_bytes
from tests.vendor_sim.dashvector_proto import SERVICE

pytestmark = pytest.mark.asyncio(loop_scope="session")

PART = "part"
ABOUT_DOCUMENTS = ("insert_doc", "update_doc", "upsert_doc", "delete_doc")
ABOUT_PARTITIONS = ("create_partition", "delete_partition")


def _reads(name: str, *, of_catalog: bool) -> list[Call]:
    return [
        *(Call(operation, name, docs=("a", "new")) for operation in sorted(DOCUMENTS)),
        *(Call(operation, name, PART) for operation in ("query_doc", "fetch_doc")),
        *(Call(operation, name) for operation in ("stats_collection", "list_partitions")),
        *([Call("list_collections")] if of_catalog else []),
    ]


async def _assert_new(pair: Rig, calls: list[Call], context: object, doors: list[Door] | None = None) -> None:
    """Every answer is what the vendor says now; visibility is immediate here, so hits and others alike."""
    now = {
        (protocol, call): await pair.direct(protocol).ask(call)
        for protocol, call in itertools.product(PROTOCOLS, calls)
    }

    async def check(door: Door, call: Call) -> None:
        answer, expected = await door.ask(call), now[door.protocol, call]
        said = (answer.code, answer.output)
        assert said == (expected.code, expected.output), (context, door.protocol, door.token, call, answer.cache)

    await asyncio.gather(*(check(*way) for way in itertools.product(doors or pair.doors(), calls)))


async def _written(pair: Rig, door: Door, operation: str, partition: str) -> None:
    """One write of one kind in a collection of its own, with everything known about it before."""
    pair.redis.command("FLUSHALL")  # what an earlier test left; collections are made past the proxies here
    name = pair.vendor.create(partitions=() if operation == "create_partition" else [PART])
    reads = _reads(name, of_catalog=operation.endswith("_collection"))
    if operation == "create_partition":
        reads = [call for call in reads if not call.partition]
    doors = pair.doors()
    await all_warm(doors, reads)
    docs = ("new",) if operation == "insert_doc" else ("a",)
    collection = f"{name}_b" if operation == "create_collection" else name
    write = Call(operation, collection, PART if operation in ABOUT_PARTITIONS else partition, version=2, docs=docs)
    before = {call: (await pair.direct("http").ask(call)).output for call in reads}
    answer = await door.ask(write)
    assert answer.is_success, answer
    after = {call: (await pair.direct("http").ask(call)).output for call in reads}
    assert before != after, "a write that changes nothing proves nothing"
    await _assert_new(pair, reads, (door.protocol, door.token, write))
    assert len(pair.vendor.records(collection, operation)) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("operation", [*ABOUT_DOCUMENTS, *ABOUT_PARTITIONS, "create_collection", "delete_collection"])
async def test_c6_every_write_counts_for_every_reader(pair: Rig, operation: str, protocol: Protocol) -> None:
    partitions = ("", "default", PART) if operation in ABOUT_DOCUMENTS else ("",)
    for partition, token in itertools.product(partitions, (ANN, BOB)):
        await _written(pair, pair.door(protocol, token, replica=1), operation, partition)


# Spellings that some server may take for a write to {c}; {coded} is its name with a letter %-coded.
_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
ODD: dict[str, tuple[str, str, dict[str, str]]] = {
    "an upgrade": ("GET", "/v1/collections/{c}/docs/drop", _UPGRADE),
    "an upgrade and another method": ("GET", "/v1/collections/{c}", {**_UPGRADE, "X-HTTP-Method-Override": "DELETE"}),
    "a slash at the end": ("POST", "/v1/collections/{c}/docs/", {}),
    "a slash at the end of upsert": ("POST", "/v1/collections/{c}/docs/upsert/", {}),
    "a slash at the end of a drop": ("DELETE", "/v1/collections/{c}/", {}),
    "two slashes": ("PUT", "/v1//collections/{c}/docs", {}),
    "two slashes in front": ("PUT", "//v1/collections/{c}/docs", {}),
    "a coded name": ("POST", "/v1/collections/{coded}/docs/upsert", {}),
    "a coded name of a read": ("POST", "/v1/collections/{coded}/query", {}),
    "a coded slash": ("POST", "/v1/collections/{c}/docs%2Fupsert", {}),
    "a coded word": ("POST", "/v1/collections/{c}/d%6Fcs", {}),
    "a dot": ("POST", "/v1/collections/{c}/./docs", {}),
    "two dots": ("POST", "/v1/collections/other/../{c}/docs", {}),
    "upper case": ("POST", "/V1/Collections/{c}/Docs", {}),
    "a parameter": ("POST", "/v1/collections/{c}/docs;v=1", {}),
    "a query": ("POST", "/v1/collections/{c}/docs/upsert?a=b", {}),
    "an unknown word": ("POST", "/v1/collections/{c}/merge", {}),
    "an unknown method": ("PATCH", "/v1/collections/{c}/docs", {}),
    "an unknown use of GET": ("GET", "/v1/collections/{c}/docs/drop", {}),
    "an unknown version": ("POST", "/v2/collections/{c}/docs", {}),
    "an unknown root": ("POST", "/v9/{c}", {}),
    "a read's path, written to": ("PUT", "/v1/collections/{c}/query", {}),
    "x-http-method-override": ("POST", "/v1/collections/{c}/query", {"X-HTTP-Method-Override": "DELETE"}),
    "x-http-method": ("GET", "/v1/collections/{c}", {"X-HTTP-Method": "DELETE"}),
    "x-method-override": ("GET", "/v1/collections/{c}/docs?ids=a", {"X-Method-Override": "DELETE"}),
    "x-original-url": ("GET", "/v1/collections", {"X-Original-URL": "/v1/collections/{c}/docs"}),
    "x-rewrite-url": ("GET", "/service_version", {"X-Rewrite-URL": "/v1/collections/{c}/docs"}),
}


@pytest.mark.parametrize("token", [ANN, BOB])
async def test_c6_every_odd_spelling_counts_as_a_write(pair: Rig, token: str) -> None:
    """The vendor is made to have understood it: the document has changed when the request is answered."""
    name = pair.vendor.create()
    read, doors = Call("query_doc", name), pair.doors()
    # Neither well done nor unknown: with 404 the vendor would say that it did not understand it either.
    pair.vendor.fail(operation="unknown", code=-2000)
    version = 1
    for what, (method, target, headers) in ODD.items():
        await all_warm(doors, [read], version=version)
        version += 1
        pair.vendor.put(name, version)
        coded = f"%{ord(name[0]):02X}{name[1:]}"
        lines = {key: value.format(c=name) for key, value in headers.items()}
        body = None if method in ("GET", "DELETE") else {"vector": [1.0, 0.0]}
        answer = await pair.door("http", token, 1).http(method, target.format(c=name, coded=coded), body, lines)
        assert not answer.is_hit, what
        await _assert_new(pair, [read], what, doors)


async def test_c6_the_absolute_form_of_a_target_counts_as_a_write(pair: Rig) -> None:
    name = pair.vendor.create()
    read, doors = Call("query_doc", name), pair.doors()
    await all_warm(doors, [read], version=1)
    pair.vendor.put(name, 2)
    host = f"127.0.0.1:{pair.proxy.http_port}".encode()
    lines = [(b"Host", host), (b"dashvector-auth-token", ANN.encode()), (b"Content-Type", b"application/json")]
    target = b"http://%b/v1/collections/%b/docs" % (host, name.encode())
    async with await RawClient.connect(pair.proxy.http_url) as client:
        await client.send(request_bytes("POST", target, lines, b'{"docs": []}'))
        assert (await client.read_response(method="POST")).status == 200
    await _assert_new(pair, [read], "absolute form", doors)


GRPC_ODD: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "an unknown method": (f"/{SERVICE}/merge_docs", (("collection-name", "{c}"),)),
    "another service": ("/proxima.other.Service/upsert_doc", (("collection-name", "{c}"),)),
    "a service of the next version": ("/proxima.dashvector.proto.v2.DashVectorService/upsert_doc", ()),
    "no collection": (f"/{SERVICE}/upsert_doc", ()),
    "two collections": (f"/{SERVICE}/upsert_doc", (("collection-name", "other"), ("collection-name", "{c}"))),
    "a name of an unknown form": (f"/{SERVICE}/upsert_doc", (("collection-name", " {c}"),)),
    "a read in other letters": (f"/{SERVICE}/Query_Doc", (("collection-name", "{c}"),)),
}


@pytest.mark.parametrize("token", [ANN, BOB])
async def test_c6_every_odd_call_over_grpc_counts_as_a_write(pair: Rig, token: str) -> None:
    name = pair.vendor.create()
    read, doors = Call("query_doc", name), pair.doors()
    version = 1
    for what, (method, metadata) in GRPC_ODD.items():
        await all_warm(doors, [read], version=version)
        version += 1
        pair.vendor.put(name, version)
        _, message, _ = grpc_form(Call("upsert_doc", name, version=version))
        lines = tuple((key, value.format(c=name)) for key, value in metadata)
        answer = await pair.door("grpc", token, 1).grpc(method, message, lines)
        assert not answer.is_hit, what
        await _assert_new(pair, [read], what, doors)


# --- the lease --------------------------------------------------------------------------------------------------------

REFUSALS: dict[str, dict[str, object]] = {
    "401": {},
    "403": {"unauthorized_status": 403, "unauthorized_code": 403},
    "200 with code 401": {"unauthorized_status": 200, "unauthorized_code": 401},
    "UNAUTHENTICATED without trailers": {"unauthenticated_trailers": False},
}


async def _attempts(door: Door, name: str) -> list[Answer]:
    """Everything that would void a collection if its sender were believed."""
    calls = [Call("upsert_doc", name, version=9), Call("delete_doc", name), Call("delete_collection", name)]
    answers = [await door.ask(call) for call in calls]
    if door.protocol == "http":
        answers.append(await door.http("POST", f"/v1/collections/{name}/docs/", {}))
    else:
        answers.append(await door.grpc(f"/{SERVICE}/merge_docs", b""))
    return answers


@pytest.mark.parametrize("refusal", list(REFUSALS))
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_lease_a_stranger_cannot_void_what_others_use(pair: Rig, protocol: Protocol, refusal: str) -> None:
    pair.vendor.healthy(**REFUSALS[refusal])
    name = pair.vendor.create()
    reads, doors = [Call("query_doc", name), Call("stats_collection", name)], pair.doors()
    await all_warm(doors, reads)
    for replica in (0, 1):
        answers = await _attempts(pair.door(protocol, STRANGER, replica), name)
        assert not any(answer.is_success for answer in answers)
    # Not one of them is cold, not even for a moment.
    answers = [await door.ask(call) for door in doors for call in reads]
    assert all(answer.is_hit for answer in answers), [answer.cache for answer in answers]


@pytest.mark.parametrize(
    "rule",
    [{"code": 401}, {"code": 403}, {"grpc_status": "PERMISSION_DENIED"}, {"grpc_status": "UNAUTHENTICATED"}],
    ids=str,
)
async def test_lease_every_form_of_refusal_over_grpc_is_known(pair: Rig, rule: dict[str, object]) -> None:
    name = pair.vendor.create()
    read, doors = Call("query_doc", name), pair.doors()
    await all_warm(doors, [read])
    pair.vendor.fail(operation="upsert_doc", collection=name, **rule)
    stranger = pair.door("grpc", f"sk-dv-new-{name}", 1)
    assert not (await stranger.ask(Call("upsert_doc", name, version=2))).is_success
    assert all([(await door.ask(read)).is_hit for door in doors])


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_lease_only_who_was_accepted_voids_before_the_write_and_everybody_after_it(
    pair: Rig, protocol: Protocol
) -> None:
    name = pair.vendor.create()
    read, doors = Call("query_doc", name), pair.doors()
    newcomer = pair.door(protocol, f"sk-dv-new-{name}", 1)
    for version, is_known in ((2, False), (3, True)):
        await all_warm(doors, [read], version=version - 1)
        with pair.vendor.holding("execute", "upsert_doc", name) as held:
            async with asyncio.TaskGroup() as group:
                written = group.create_task(newcomer.ask(Call("upsert_doc", name, version=version)))
                await held.wait_arrived()
                meanwhile = [await door.ask(read) for door in doors[::2]]  # nobody asks what another has
                held.release()
        assert {answer.is_hit for answer in meanwhile} == {not is_known}
        assert written.result().is_success
        await _assert_new(pair, [read], version, doors)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_lease_a_read_that_was_answered_makes_a_credential_known(pair: Rig, protocol: Protocol) -> None:
    name = pair.vendor.create()
    read = Call("query_doc", name)
    newcomer = pair.door(protocol, f"sk-dv-new-{name}")
    await warm(newcomer, read)
    with pair.vendor.holding("execute", "upsert_doc", name) as held:
        async with asyncio.TaskGroup() as group:
            group.create_task(newcomer.ask(Call("upsert_doc", name, version=2)))
            await held.wait_arrived()
            assert not (await pair.door(protocol, ANN).ask(read)).is_hit
            assert not (await newcomer.ask(read)).is_hit
            held.release()
