"""
The vendor's client as its users have it, in a process of its own: ``namespace_script.py grpc|http ENDPOINT``.

A phase's name per line on standard input; what each of its calls returned, as one line of JSON on standard output. The
SDK is not touched, the endpoint is a bare name. Each phase has a client of its own: a client keeps what it was told.
"""

import asyncio
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final

import dashvector as sdk  # type: ignore[import-untyped]
from dashvector import Doc, OrderByField, SparseVectorQuery, VectorParam, VectorQuery

TOKEN: Final = "sk-dv-0123456789abcdef"
WRONG_TOKEN: Final = "sk-dv-wrong"

NEAR: Final = [0.1, 0.2, 0.3, 0.4]
# The SDK compares types by equality, and list[str] does not equal typing.List[str].
FIELDS: Final = {
    "age": int,
    "name": str,
    "weight": float,
    "member": bool,
    "serial": sdk.long,
    "tags": typing.List[str],  # noqa: UP006
    "marks": typing.List[int],  # noqa: UP006
    "sizes": typing.List[float],  # noqa: UP006
    "stamps": typing.List[sdk.long],  # noqa: UP006
}
DOCS: Final = [
    Doc(
        id="1",
        vector=NEAR,
        fields={"age": 20, "name": "张三", "weight": 55.1, "member": True, "serial": 2**40, "tags": ["a", "ü"]},
    ),
    Doc(id="a+b@c#d", vector=[0.2, 0.3, 0.4, 0.5], fields={"age": 30, "free": True, "large": 2**41, "name": "O'Hara"}),
    Doc(id="x%25y", vector=[0.4, 0.3, 0.2, 0.1], fields={"age": 20, "name": "lisi", "marks": [1, -2], "weight": 0.1}),
    Doc(id="!$=.-_", vector=[1.0, 0.0, 0.0, 0.0], fields={"age": 40, "sizes": [0.5, 1e-7], "stamps": [2**50]}),
    Doc(id="5", vector=[-0.1, 0.2, -0.3, 0.4]),
]
IDS: Final = [doc.id for doc in DOCS]

Steps = Iterator[tuple[str, Any]]
Connect = Callable[[str], Any]


# --- the phases -------------------------------------------------------------------------------------------------------


def fill(connect: Connect) -> Steps:
    """Collections of every kind and what is in them, each write followed by a read that must see it."""
    client = connect(TOKEN)
    yield "connect", client
    yield "list nothing", client.list()
    yield "create", client.create("articles", 4, fields_schema=FIELDS, extra_params={"quantize_type": "DT_VECTOR_INT8"})
    yield "describe", client.describe("articles")
    articles = client.get("articles")
    yield "get", articles
    yield "fetch before insert", articles.fetch(IDS)
    yield "insert one", articles.insert(DOCS[0])
    yield "fetch what was inserted", articles.fetch(IDS)
    yield "insert asynchronously", articles.insert(DOCS[1:3], async_req=True).get()
    yield "upsert asynchronously", articles.upsert(DOCS[3:], async_req=True).get()
    yield "fetch what was written asynchronously", articles.fetch(IDS)
    yield "update", articles.update(Doc(id="5", vector=[0.1, -0.2, 0.3, -0.4], fields={"age": 50}))
    yield "query what was updated", articles.query(id="5", topk=2, include_vector=True)
    yield "create partition", articles.create_partition("shoes")
    yield "upsert into it", articles.upsert([Doc(id="1", vector=NEAR, fields={"age": 1}), *DOCS[3:]], partition="shoes")
    yield "stats", articles.stats()
    yield from _fill_others(client)
    yield "list all", client.list()


def _fill_others(client: Any) -> Steps:
    named = {"title": VectorParam(2), "content": VectorParam(3, metric="euclidean")}
    yield "create with named vectors", client.create("sides", vectors=named, fields_schema={"author": str})
    docs = [
        Doc(str(n), vectors={"title": [0.1 * n, 0.2], "content": [0.3, 0.1 * n, 0.5]}, fields={"author": "ab"[n % 2]})
        for n in range(1, 6)
    ]
    yield "upsert named vectors", client.get("sides").upsert(docs)

    yield "create for sparse vectors", client.create("sparse", 4, metric="dotproduct")
    docs = [Doc("1", NEAR, sparse_vector={5: 0.5, 1: 0.25}), Doc("2", [0.4, 0.3, 0.2, 0.1], sparse_vector={7: 0.5})]
    yield "insert sparse vectors", client.get("sparse").insert(docs)

    words = {"body": VectorParam(0, metric="dotproduct")}
    titles = {"title": VectorParam(2, metric="dotproduct")}
    created = client.create(
        "words", vectors=titles, sparse_vectors=words, fields_schema={"author": str}, indexes={"author": sdk.Index()}
    )
    yield "create with named sparse vectors", created
    docs = [
        Doc(id="1", vectors={"title": [0.1, 0.2]}, sparse_vectors={"body": {1: 0.5, 3: 0.25}}),
        Doc(id="2", vectors={"title": [0.2, 0.2]}, sparse_vectors={"body": {3: 0.5}}, fields={"author": "b"}),
    ]
    yield "insert named sparse vectors", client.get("words").insert(docs)

    yield "create for integers", client.create("bytes", 3, metric="euclidean", dtype=int)
    docs = [Doc(id="1", vector=[1, -2, 127]), Doc(id="2", vector=[3, 4, -128])]
    yield "insert integers", client.get("bytes").insert(docs)

    yield "create for new ids", client.create("made-ids", 2)
    made = client.get("made-ids")
    yield "insert without ids", made.insert([Doc(vector=[0.1, 0.2]), ([0.3, 0.4], {"age": 1})])
    yield "upsert without an id", made.upsert(Doc(vector=[0.5, 0.6]))


def read(connect: Connect) -> Steps:
    """Every read, in every form that the SDK has; all succeed."""
    client = connect(TOKEN)
    yield "connect", client
    yield "list", client.list()
    for name in ("articles", "sides", "sparse", "words", "bytes", "made-ids"):
        yield f"describe {name}", client.describe(name)
        yield f"get {name}", client.get(name)
        yield f"stats of {name}", client.get(name).stats()
    articles = client.get("articles")
    yield "fetch one", articles.fetch("1")
    yield "fetch several", articles.fetch(IDS)
    yield "fetch some that are not there", articles.fetch(["1", "nobody"])
    yield "fetch none that is there", articles.fetch("nobody")
    yield "fetch from a partition", articles.fetch(IDS, partition="shoes")
    yield from _queries(articles)
    yield from _grouped(articles)
    yield from _partitions(articles)
    yield from _other_queries(client)
    yield from _asynchronously(articles)


def _queries(articles: Any) -> Steps:
    yield "query", articles.query(NEAR)
    yield "query for two", articles.query(NEAR, topk=2)
    yield "query for as many as there may be", articles.query(NEAR, topk=1024, include_vector=True)
    yield "query with vectors", articles.query(NEAR, topk=3, include_vector=True)
    yield "query by id", articles.query(id="a+b@c#d", topk=3)
    yield "query in a partition", articles.query(NEAR, partition="shoes")
    yield "query by id in a partition", articles.query(id="1", partition="shoes")
    yield "query for some fields", articles.query(NEAR, output_fields=["name", "tags"])
    conditions = (
        "age >= 20 and weight = 55.1",
        "name = '张三'",
        "name like 'li%' or free = true",
        "age in (20, 40) and not member = true",
        "tags contain_any ('ü')",
        "name is null",
        "age > 1000",
    )
    for condition in conditions:
        yield f"query where {condition}", articles.query(NEAR, filter=condition)
        yield f"no vector, where {condition}", articles.query(filter=condition)
    yield "query for nothing in particular", articles.query(topk=3)
    yield "query in order", articles.query(order_by_fields=OrderByField("age", desc=True))
    order = [OrderByField("age"), OrderByField("name", desc=True)]
    yield "query in order of two fields", articles.query(NEAR, order_by_fields=order, output_fields=["age", "name"])
    yield "query linearly", articles.query(VectorQuery(NEAR, num_candidates=4, is_linear=True), topk=3)
    yield "query within a radius", articles.query(VectorQuery(NEAR, radius=0.05, ef=64))
    yield "query for numbers with a tail", articles.query([1 / 3, -2e-7, 1e-9, 16777217.0])


def _grouped(articles: Any) -> Steps:
    yield "query grouped", articles.query_group_by(NEAR, group_by_field="age")
    few = {"group_by_field": "age", "group_count": 2, "group_topk": 1}
    yield "query grouped, a few", articles.query_group_by(NEAR, **few, include_vector=True)
    yield "query grouped by id", articles.query_group_by(id="1", group_by_field="name", output_fields=["age"])
    yield "query grouped where", articles.query_group_by(NEAR, group_by_field="age", filter="age < 40")
    yield "query grouped in a partition", articles.query_group_by(NEAR, group_by_field="age", partition="shoes")


def _partitions(articles: Any) -> Steps:
    yield "list partitions", articles.list_partitions()
    for name in ("default", "shoes"):
        yield f"describe partition {name}", articles.describe_partition(name)
        yield f"stats of partition {name}", articles.stats_partition(name)


def _other_queries(client: Any) -> Steps:
    sides = client.get("sides")
    asked = {"title": [0.1, 0.2], "content": [0.3, 0.4, 0.5]}
    yield "query two vectors", sides.query(asked, topk=2, include_vector=True)
    yield "query two vectors, by rank", sides.query(asked, topk=3, rerank=sdk.RrfRanker(rank_constant=10))
    weights = sdk.WeightedRanker({"title": 0.3, "content": 0.7})
    yield "query two vectors, by weight", sides.query(asked, topk=3, rerank=weights)
    yield "query one of two vectors", sides.query({"content": VectorQuery([0.3, 0.4, 0.5], num_candidates=3)}, topk=2)
    yield (
        "query grouped, one of two vectors",
        sides.query_group_by([0.1, 0.2], group_by_field="author", vector_field="title"),
    )
    yield "fetch named vectors", sides.fetch("1")

    sparse = client.get("sparse")
    yield "query with a sparse vector", sparse.query(NEAR, sparse_vector={7: 4.0, 5: 0.5}, include_vector=True)
    yield "fetch sparse vectors", sparse.fetch(["2", "1"])

    words = client.get("words")
    body = {"body": SparseVectorQuery({3: 2.0, 1: 0.125})}
    yield "query a named sparse vector", words.query(sparse_vectors=body, include_vector=True)
    yield "query both kinds", words.query({"title": [0.1, 0.2]}, sparse_vectors=body, rerank=sdk.RrfRanker())
    yield "fetch named sparse vectors", words.fetch(["1", "2"])

    numbers = client.get("bytes")
    yield "query integers", numbers.query([1, -2, 126], include_vector=True)
    yield "fetch integers", numbers.fetch(["1", "2"])


def _asynchronously(articles: Any) -> Steps:
    """All at once, two of them alike."""
    asked = {
        "fetch": articles.fetch(["5", "1"], async_req=True),
        "query": articles.query(NEAR, topk=4, async_req=True),
        "query again": articles.query(NEAR, topk=4, async_req=True),
        "query grouped": articles.query_group_by(NEAR, group_by_field="name", async_req=True),
    }
    yield from ((f"{name} asynchronously", response.get()) for name, response in asked.items())


def refuse(connect: Connect) -> Steps:
    """Whatever is wrong: in the SDK's own eyes, or in the service's."""
    client = connect(TOKEN)
    yield "connect", client
    articles = client.get("articles")
    yield "describe what is not there", client.describe("missing")
    missing = client.get("missing")
    yield "get what is not there", missing
    yield "query what is not there", missing.query(NEAR)
    yield "delete what is not there", client.delete("missing")
    yield "create a second time", client.create("articles", 4)
    yield "create a name that is none", client.create("大")
    yield "create too small", client.create("too-small", 1)
    yield "insert a second time", articles.insert(DOCS[0])
    yield "insert a number too few", articles.insert(Doc(id="6", vector=[0.1]))
    yield "insert without a vector", articles.insert(Doc(id="6"))
    yield "insert too much", articles.insert([Doc(id="6", vector=NEAR, fields={"free": "x" * 2**21})])
    yield "insert a sparse vector", articles.insert(Doc(id="6", vector=NEAR, sparse_vector={1: 0.5}))
    yield "update nobody", articles.update(Doc(id="nobody", vector=NEAR))
    yield "delete nobody", articles.delete("nobody")
    yield "delete all and one", articles.delete("1", delete_all=True)
    yield "write to a partition that is not there", articles.upsert(DOCS[0], partition="missing")
    yield "fetch a name that is none", articles.fetch("张三")
    yield "fetch too many", articles.fetch([str(n) for n in range(1025)])
    yield "fetch from a partition that is not there", articles.fetch("1", partition="missing")
    yield "a condition that is none", articles.query(NEAR, filter="age >")
    yield "a condition that is too long", articles.query(NEAR, filter=" " * 40_961)
    yield "too many", articles.query(NEAR, topk=1025)
    yield "too many for the service", articles.query(topk=1025)
    yield "too many with vectors", articles.query(NEAR, topk=1025, include_vector=True)
    yield "a vector and an id", articles.query(NEAR, id="1")
    yield "near to nobody", articles.query(id="nobody")
    yield "a number too few", articles.query([0.1, 0.2])
    yield "a sparse vector", articles.query(NEAR, sparse_vector={1: 0.5})
    yield "in an order that is none", articles.query(order_by_fields=OrderByField("free"))
    yield "in a partition that is not there", articles.query(NEAR, partition="missing")
    yield "refused asynchronously", articles.query(NEAR, filter="and", async_req=True).get()
    yield "grouped by what was not declared", articles.query_group_by(NEAR, group_by_field="free")
    yield "grouped near to nobody", articles.query_group_by(id="nobody", group_by_field="age")
    yield "create a partition a second time", articles.create_partition("shoes")
    yield "describe a partition that is not there", articles.describe_partition("missing")
    yield "stats of a partition that is not there", articles.stats_partition("missing")
    yield "delete the partition that must stay", articles.delete_partition("default")
    for token in (WRONG_TOKEN, ""):
        other = connect(token)
        yield "a wrong token", other
        yield "list with a wrong token", other.list()
    client.close()
    yield "list with a closed client", client.list()
    yield "an endpoint that is none", sdk.Client(api_key=TOKEN, endpoint="127.0.0.2:443")


def look(connect: Connect) -> Steps:
    """Reads of all kinds, few enough to be taken after every change; all succeed."""
    client = connect(TOKEN)
    yield "connect", client
    yield from _look(client)


def _look(client: Any) -> Steps:
    yield "list", client.list()
    yield "describe", client.describe("articles")
    articles = client.get("articles")
    for partition in (None, "shoes"):
        yield f"fetch, {partition}", articles.fetch(IDS, partition=partition)
        yield f"query, {partition}", articles.query(NEAR, topk=5, include_vector=True, partition=partition)
        yield f"query by id, {partition}", articles.query(id="1", partition=partition)
        yield f"query for anything, {partition}", articles.query(topk=3, partition=partition)
        yield f"query grouped, {partition}", articles.query_group_by(NEAR, group_by_field="age", partition=partition)
        yield f"stats of partition, {partition}", articles.stats_partition(partition or "default")
    yield "stats", articles.stats()
    yield "list partitions", articles.list_partitions()
    yield "describe partition", articles.describe_partition("default")


def update(articles: Any) -> Steps:
    yield "update", articles.update(Doc(id="5", vector=NEAR, fields={"age": 51}))


def write_two_at_once(articles: Any) -> Steps:
    later = [
        articles.upsert(Doc(id="1", vector=[0.0, 0.0, 0.0, 1.0], fields={"age": 21}), async_req=True),
        articles.update(Doc(id="a+b@c#d", vector=[0.0, 0.0, 1.0, 0.0]), async_req=True),
    ]
    yield from (("write two at once", response.get()) for response in later)


def upsert(articles: Any) -> Steps:
    yield "upsert", articles.upsert([Doc(id="1", vector=NEAR), Doc(id="newer", vector=NEAR)])


def insert(articles: Any) -> Steps:
    yield "insert", articles.insert(Doc(id="newest", vector=NEAR, fields={"age": 20}), partition="shoes")


def delete(articles: Any) -> Steps:
    yield "delete", articles.delete(["newer", "x%25y"], async_req=True).get()


def delete_all(articles: Any) -> Steps:
    yield "delete all of a partition", articles.delete(delete_all=True, ids=[], partition="shoes")
    # So that everything can be asked of it again.
    yield "upsert one", articles.upsert(DOCS[0], partition="shoes")


def create_partition(articles: Any) -> Steps:
    yield "create partition", articles.create_partition("boots")
    yield "describe what was created", articles.describe_partition("boots")


def delete_partition(articles: Any) -> Steps:
    yield "describe what will be deleted", articles.describe_partition("boots")
    yield "fetch from what will be deleted", articles.fetch("1", partition="boots")
    yield "delete partition", articles.delete_partition("boots")
    yield "describe what was deleted", articles.describe_partition("boots")
    yield "fetch from what was deleted", articles.fetch("1", partition="boots")


def seen(write: Callable[[Any], Steps]) -> Callable[[Connect], Steps]:
    """The phase that does *write* and then takes the look that must see it."""

    def phase(connect: Connect) -> Steps:
        client = connect(TOKEN)
        yield "connect", client
        yield from write(client.get("articles"))
        yield from _look(client)

    return phase


def clear(connect: Connect) -> Steps:
    """Everything is deleted; one collection comes back, and must be new."""
    client = connect(TOKEN)
    yield "connect", client
    yield "delete", client.delete("articles")
    yield "list", client.list()
    yield "describe what was deleted", client.describe("articles")
    yield "create again", client.create("articles", 3, metric="euclidean")
    yield "list again", client.list()
    yield "describe what is new", client.describe("articles")
    articles = client.get("articles")
    yield "fetch from what is new", articles.fetch(IDS)
    yield "query what is new", articles.query(topk=3)
    yield "query by an id of old", articles.query(id="1")
    yield "stats of what is new", articles.stats()
    yield "list partitions of what is new", articles.list_partitions()
    for name in ("articles", "sides", "sparse", "words", "bytes", "made-ids"):
        yield f"delete {name}", client.delete(name)
    yield "list nothing", client.list()


# --- what was returned ------------------------------------------------------------------------------------------------

PHASES: Final[dict[str, Callable[[Connect], Steps]]] = {
    "fill": fill,
    "read": read,
    "look": look,
    "refuse": refuse,
    "clear": clear,
    "update": seen(update),
    "write two at once": seen(write_two_at_once),
    "upsert": seen(upsert),
    "insert": seen(insert),
    "delete": seen(delete),
    "delete all": seen(delete_all),
    "create partition": seen(create_partition),
    "delete partition": seen(delete_partition),
}
_MADE_ID: Final = re.compile(r"\d{19}")


def plain(value: Any) -> Any:
    """An SDK object as JSON, its type included; ids that the service makes are told by their form."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return "(made)" if _MADE_ID.fullmatch(value) else value
    if value is None or isinstance(value, int | float):
        return value
    # The SDK's classes have methods of that name.
    return {"type": type(value).__name__, **plain(value.__dict__())}


def shown(response: Any) -> Any:
    """All of a response, or of a client, that its caller sees; request ids are told by their being there."""
    told = {
        "type": type(response).__name__,
        "is_true": bool(response),
        "code": [type(response.code).__name__, response.code],
        "message": response.message,
        "has_request_id": bool(response.request_id),
    }
    if isinstance(response, sdk.Client):
        return {**told, "version": response.version}
    return {**told, "output": plain(response.output), "usage": plain(response.usage)}


if __name__ == "__main__":
    protocol, endpoint = sys.argv[1:]
    # The default is left to be the default.
    options = {"protocol": sdk.DashVectorProtocol.HTTP} if protocol == "http" else {}
    asyncio.set_event_loop(asyncio.new_event_loop())  # newer Pythons make none, and the SDK's HTTP side expects one

    def connect(token: str) -> Any:
        return sdk.Client(api_key=token, endpoint=endpoint, **options)

    for line in sys.stdin:
        told = [[name, shown(response)] for name, response in PHASES[line.strip()](connect)]
        print(json.dumps(told), flush=True)
