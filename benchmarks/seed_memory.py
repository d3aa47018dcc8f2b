"""
What 1,500 embeddings and 1,000 match results take of a Redis that holds nothing else, item by item.

The real product and the vendors' own SDKs, the simulator as vendor. Embeddings have 1,024 numbers. A match result has
20 documents, each with an id, a score and four small fields (title, city, rate, remote), no vectors; half of the
thousand are asked by users, half by projects. One profile is rewritten at the end: a hold is there as well, and what
the write made stale, which stays until its time is over.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dashscope

from benchmarks.profiles import FIELDS, SIDES, Profile, everybody
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import vector
from tests.vendor_sim.dashvector_clients import sdk_client, sdk_endpoints
from tests.vendor_sim.dashvector_package import dashvector
from tests.vendor_sim.dashvector_recorder import Protocol
from tests.vendor_sim.runner import ProcessSim, sim_process

MODEL = "text-embedding-v4"
SETTLE_S = 120.0  # the hold shall be there when keys are counted
STORE_S = 30.0
LIMIT_BYTES = 9_000_000

_COUNTED_TWICE = 24 + 16  # entry and object: MEMORY USAGE has them with the key, MEMORY STATS with the table


@dataclass(frozen=True)
class Size:
    """How much is kept."""

    embeddings: int = 1_500
    matches: int = 1_000
    topk: int = 20
    dimension: int = 1_024


@dataclass(frozen=True)
class Item:
    """All keys of one kind; *bytes_used* is what ``MEMORY USAGE`` says of them: key, value, object and dict entry."""

    name: str
    count: int
    key_bytes: int
    value_bytes: int
    bytes_used: int


@dataclass(frozen=True)
class Measured:
    """What Redis said of itself. Differences are to the same server, empty and without clients."""

    version: str
    items: tuple[Item, ...]
    answer_bytes: float
    tables: int
    clients: int
    used: int
    dataset: int
    empty: int

    @property
    def rest(self) -> int:
        """What no item accounts for: the allocator's rounding, scripts, what grew inside the server."""
        return self.used - sum(item.bytes_used for item in self.items) - self.tables - self.clients


def measure(size: Size, protocol: Protocol) -> Measured:
    """Fill a fresh Redis through the proxy and take it apart."""
    with RedisServer() as redis, sim_process("--no-record", "--dashvector-grpc-port", "0") as sim:
        empty = redis.command("INFO", "memory")
        with proxied(sim, redis, SETTLE_S) as proxy, sdk_endpoints():
            people = everybody(size.matches // 2, size.matches - size.matches // 2)
            stored(sim, people, size.dimension)
            embed(proxy.http_url, size)
            answer_bytes = match(proxy, people, size, protocol)
            # Besides what is counted here, the SDK asks for descriptions of the collections, which are kept too.
            made = {kind: about["upstream_calls"] for kind, about in proxy.stats()["operations"].items()}
            wanted = size.embeddings + size.matches + made["vector-stats"]
            wait_until_sync(lambda: len(redis.command("KEYS", "dashcache:e:*")) == wanted, STORE_S, "the store")
            rewrite(proxy, protocol, size)
            return taken_apart(redis, empty, size, answer_bytes)


@contextlib.contextmanager
def proxied(sim: ProcessSim, redis: RedisServer, settle_s: float) -> Iterator[ProxyProcess]:
    """The product between *sim* and *redis*."""
    patience = {"DASHCACHE_REDIS_DEADLINE_MS": "5000", "DASHCACHE_VECTOR_SETTLE_S": str(settle_s)}
    with ProxyProcess(
        dashscope_url=sim.url,
        dashvector_url=sim.url,
        dashvector_grpc_url=f"http://{sim.grpc_address}",
        redis_url=redis.url,
        env=patience,
    ) as proxy:
        yield proxy


def stored(sim: ProcessSim, people: list[Profile], dimension: int) -> None:
    """Make both collections, straight at the vendor."""
    with sdk_client("grpc", sim.grpc_address) as client:
        for side in SIDES:
            _checked(client.create(side, dimension, metric="cosine", fields_schema=dict(FIELDS)))
            documents = [_document(profile, dimension) for profile in people if profile.side == side]
            for at in range(0, len(documents), 100):
                _checked(client.get(side).upsert(documents[at : at + 100]))


def embed(base_url: str, size: Size) -> None:
    """As many texts, each in a call of its own."""
    dashscope.base_http_api_url = f"{base_url}/api/v1"
    for number in range(size.embeddings):
        text = f"profile {number}: {Profile('users', number).text}"
        answer = dashscope.TextEmbedding.call(model=MODEL, input=text, api_key="sk-memory", dimension=size.dimension)
        if answer.status_code != 200:
            raise RuntimeError(f"the embedding failed: {answer}")


def match(proxy: ProxyProcess, people: list[Profile], size: Size, protocol: Protocol) -> float:
    """Everybody's matches; bytes of an answer on average."""
    address = proxy.grpc_address if protocol == "grpc" else proxy.http_url
    with sdk_client(protocol, address) as client:
        collections = {side: _collection(client, side) for side in SIDES}
        for profile in people:
            asked = [float(number) for number in vector(MODEL, size.dimension, profile.text)]
            answer = _checked(collections[profile.others].query(asked, topk=size.topk))
            if len(answer.output) != size.topk:
                raise RuntimeError(f"{len(answer.output)} documents")
    sent = [record["bytes_out"] for record in proxy.logs if record.get("operation") == "vector-query"]
    return sum(sent) / len(sent) if sent else 0.0


def rewrite(proxy: ProxyProcess, protocol: Protocol, size: Size) -> None:
    """One write; what it makes stale stays in Redis until its time is over."""
    address = proxy.grpc_address if protocol == "grpc" else proxy.http_url
    with sdk_client(protocol, address) as client:
        _checked(_collection(client, "users").upsert([_document(Profile("users", 0).updated, size.dimension)]))


def _collection(client: Any, side: str) -> Any:
    collection = client.get(side)
    if collection.code != 0:
        raise RuntimeError(f"no collection {side}: {collection.message}")
    return collection


def _document(profile: Profile, dimension: int) -> Any:
    numbers = [float(number) for number in vector(MODEL, dimension, profile.text)]
    return dashvector.Doc(id=profile.id, vector=numbers, fields=dict(profile.fields))


def _checked(answer: Any) -> Any:
    if answer.code != 0:
        raise RuntimeError(f"DashVector refused: {answer}")
    return answer


# --- what Redis says of itself ----------------------------------------------------------------------------------------


def taken_apart(redis: RedisServer, empty: dict[str, Any], size: Size, answer_bytes: float) -> Measured:
    """Every key by its kind, and the server's own account."""
    # By size: a match has no vector, and a description of a collection is smaller than twenty documents.
    lengths = {name: int(redis.command("STRLEN", name)) for name in redis.command("KEYS", "dashcache:e:*")}
    entries = sorted(lengths, key=lambda name: -lengths[name])
    at = size.embeddings + size.matches
    named = {
        "embeddings": entries[: size.embeddings],
        "match results": entries[size.embeddings : at],
        "descriptions": entries[at:],
        "tokens": redis.command("KEYS", "dashcache:g:*"),
        "holds": redis.command("KEYS", "dashcache:h:*"),
    }
    items = tuple(_item(redis, name, keys) for name, keys in named.items())
    said, about = redis.command("MEMORY", "STATS"), redis.command("INFO", "memory")
    tables = sum(_by_text(said.get("db.0") or said.get(b"db.0")).values())
    return Measured(
        version=str(redis.command("INFO", "server")["redis_version"]),
        items=items,
        answer_bytes=answer_bytes,
        tables=tables - _COUNTED_TWICE * sum(item.count for item in items),
        clients=int(about["mem_clients_normal"]) - int(empty["mem_clients_normal"]),
        used=int(about["used_memory"]) - int(empty["used_memory"]),
        dataset=int(about["used_memory_dataset"]) - int(empty["used_memory_dataset"]),
        empty=int(empty["used_memory"]),
    )


def _by_text(pairs: Any) -> dict[str, int]:
    flat = list(pairs.items()) if isinstance(pairs, dict) else list(zip(pairs[::2], pairs[1::2], strict=True))
    return {name.decode() if isinstance(name, bytes) else name: int(value) for name, value in flat}


def _item(redis: RedisServer, name: str, keys: list[bytes]) -> Item:
    return Item(
        name,
        len(keys),
        sum(map(len, keys)),
        sum(int(redis.command("STRLEN", key)) for key in keys),
        sum(int(redis.command("MEMORY", "USAGE", key)) for key in keys),
    )


def lines(measured: Measured, protocol: Protocol) -> Iterator[str]:
    """The account."""
    yield f"redis-server {measured.version}, matches over {protocol}"
    yield f"{'':28}{'count':>7}{'key':>8}{'value':>8}{'each':>8}{'bytes':>12}"
    for item in measured.items:
        each = [round(part / item.count) if item.count else 0 for part in (item.key_bytes, item.value_bytes)]
        cost = item.bytes_used / item.count if item.count else 0
        yield f"{item.name:28}{item.count:>7}{each[0]:>8}{each[1]:>8}{cost:>8.0f}{item.bytes_used:>12,}"
    for name, cost in (("hash tables", measured.tables), ("clients", measured.clients), ("rest", measured.rest)):
        yield f"{name:59}{cost:>12,}"
    yield f"{'used_memory less the empty server':59}{measured.used:>12,}"
    yield f"{'used_memory_dataset, the same':59}{measured.dataset:>12,}"
    yield f"{'the empty server':59}{measured.empty:>12,}"
    if measured.answer_bytes:
        yield f"{'a match as it was answered (HTTP: gzip)':59}{measured.answer_bytes:>12,.0f}"
    yield f"fits into {LIMIT_BYTES / 1e6:g} MB: {'yes' if measured.used <= LIMIT_BYTES else 'NO'}"


def main() -> int:
    """Measure both forms of a match and print the account."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embeddings", type=int, default=1_500)
    parser.add_argument("--matches", type=int, default=1_000)
    given = parser.parse_args()
    fits = True
    for protocol in ("grpc", "http"):
        measured = measure(Size(given.embeddings, given.matches), protocol)
        print("\n".join(lines(measured, protocol)), end="\n\n", flush=True)
        fits &= measured.used <= LIMIT_BYTES
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
