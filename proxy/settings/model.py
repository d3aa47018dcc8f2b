"""
Typed settings: what can be set, in which unit, with which default, and why.

One table for everything: each field has its unit in its name, its default here, and its reason beside it (the text
under a field is what ``docs/settings.md`` prints). Reading files and the environment is ``settings_source``'s work, and
checking what they say: it lets pydantic read types and bounds from here. Every worker loads this file, with settings
that are checked, so nothing heavy is imported.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, MinLen

from proxy.core.grace import Cause
from proxy.core.listening import Protocol
from proxy.core.modes import Mode
from proxy.core.upstream import Endpoint, Upstream, split_base_url, split_vector_url
from proxy.settings.types import (
    Address,
    BaseUrl,
    HeaderName,
    HostName,
    KeySecret,
    Like,
    LocalPath,
    RedisUrl,
    SecretText,
    VectorUrl,
    is_address,
    split_address,
)
from proxy.vendors.operations import EMBEDDING, VECTOR_QUERY, VECTOR_STATS

Profile = Literal["development", "staging", "production"]

DEFAULT_UPSTREAM = "dashscope"
"""The name of the upstream that ``dashscope_url`` makes."""

DEFAULT_VECTOR_UPSTREAM = "dashvector"
"""The name of the upstream that ``dashvector_url`` makes."""

_GRPC_PORT = 443


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A group of settings: immutable, unknown names refused, no infinities; the text under a field describes it."""

    # What pydantic is to make of the dataclasses below; its own ``ConfigDict`` is a dictionary.
    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen(Section):
    """Where the proxy accepts connections."""

    http: Address = "127.0.0.1:8080"
    """The data port: ``host:port``. Every path that arrives here is forwarded."""
    grpc: Address = "127.0.0.1:50051"
    """The data port for DashVector over gRPC, to ``dashvector_url``'s cluster; only opened if there is one."""
    https: Address | None = None
    """The same as ``http`` over TLS, in addition; needs a certificate."""
    grpcs: Address | None = None
    """The same as ``grpc`` over TLS, in addition; needs a certificate."""
    certificate: LocalPath | None = None
    """PEM file of the certificate for ``https`` and ``grpcs``, with its chain; read at the start."""
    key: LocalPath | None = None
    """PEM file of the certificate's private key, without a passphrase."""
    admin: Address = "127.0.0.1:9180"
    """The admin API, health and metrics; a listener of its own because the data port forwards every path."""
    admin_token: Annotated[SecretText, MinLen(1)] | None = None
    """Required when the admin listener is not on loopback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis(Section):
    """The shared tier."""

    url: RedisUrl | None = None
    """``redis://``, ``rediss://`` or ``unix://``; none starts a redis-server of our own. Never shown."""
    deadline_ms: Annotated[int, Ge(1), Le(5_000)] = 50
    """What a hit may wait for Redis at worst; slower counts as down. Far above a healthy answer (under 1 ms)."""
    max_connections: Annotated[int, Ge(3), Le(10_000)] = 64
    """Connections per worker: one that all reads share, one that all stores share, the others to make entries stale
    before and after a write."""
    max_pending_stores: Annotated[int, Ge(1)] = 1_000
    """Background writes that may wait; beyond it entries are not written (and counted)."""
    key_prefix: Annotated[str, Like(r"^[A-Za-z0-9_.-]{1,32}$")] = "dashcache"
    """First part of every key in Redis; deployments that share a server but not their entries need one each."""
    check_fingerprint: bool = True
    """Refuse a Redis that another deployment uses under the same prefix: its writes would not make ours stale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker(Section):
    """The guard in front of Redis."""

    fail_max: Annotated[int, Ge(1), Le(1_000)] = 5
    """Failures in a row that open it."""
    reset_s: Annotated[float, Gt(0), Le(600)] = 2.0
    """How long it stays open until one request may try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamLimits(Section):
    """How upstreams are called."""

    max_inflight: Annotated[int, Ge(1)] = 200
    """Requests at a time per worker and upstream, streamed answers and WebSockets included: what protects the vendor's
    quota when the cache is of no help."""
    queue_wait_s: Annotated[float, Ge(0), Le(60)] = 1.0
    """How long a request waits for its turn at most; then 503 with Retry-After. Clients give up after 10 s or more."""
    max_queue: Annotated[int, Ge(0)] = 1_000
    """Most requests that wait, per worker and upstream; beyond it 503 at once."""
    requests_per_minute: Annotated[int, Ge(0)] = 0
    """Most requests that begin in a minute, for each upstream, evenly: the vendor refuses a sudden rise too. Zero: no
    limit. Each worker has its share of it, whether the others use theirs or not."""
    connect_timeout_s: Annotated[float, Gt(0)] = 5.0
    """Longest wait for a connection to the vendor."""
    read_timeout_s: Annotated[float, Gt(0)] = 3_900.0
    """Silence after which an answer is given up; above the longest limit that the vendor names (3,600 s)."""
    keepalive_s: Annotated[float, Ge(0)] = 15.0
    """How long an idle connection is kept; the vendor's own limit is not documented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Section):
    """Bounds on what clients send and what is kept."""

    max_key_body_bytes: Annotated[int, Ge(1_024)] = 4 * 2**20
    """Bodies up to this size are read to be keyed; larger ones stream through uncached."""
    max_answer_bytes: Annotated[int, Ge(1_024)] = 32 * 2**20
    """Answers up to this size (decoded) are looked at; larger ones stream through unstored."""
    max_entry_bytes: Annotated[int, Ge(1_024)] = 4 * 2**20
    """Entries larger than this are not stored: one of them would push out thousands of others."""
    held_bytes: Annotated[int, Ge(2**20)] = 256 * 2**20
    """Most that a worker holds at a time before it is answered: incomplete heads, bodies, gRPC messages, answers that
    are looked at. Up to 4 KiB of each are not counted, and three eighths of the budget are left for what the allocator
    takes beside. Beyond it 503, over gRPC ``RESOURCE_EXHAUSTED``, and answers stream through unstored."""
    head_bytes: Annotated[int, Ge(8_190)] = 262_144
    """All lines of a request's head together; beyond it 431."""
    header_bytes: Annotated[int, Ge(8_190)] = 65_536
    """Longest header line, and longest request line."""
    header_lines: Annotated[int, Ge(32)] = 256
    """Most header lines in one request."""
    keepalive_s: Annotated[float, Gt(0)] = 75.0
    """How long an idle client connection is kept."""
    grpc_connection_s: Annotated[float, Ge(1)] = 30.0
    """How long a gRPC connection is used until the client is asked to make another; so long do those of a replaced
    worker last after a reload. The only way that breaks no call."""
    notice_s: Annotated[float, Ge(0)] = 5.0
    """After SIGTERM: how long ``/readyz`` says no while the ports still accept, so that balancers see it in time."""
    drain_s: Annotated[float, Ge(0)] = 30.0
    """How long running requests may take after that; also those of a worker that a reload replaces."""
    max_connections: Annotated[int, Ge(1)] = 10_000
    """Client connections per worker, over HTTP; further ones get 503 and are closed. The same number again for each
    gRPC port, where further ones are closed without a word. Less if the system allows fewer open files."""
    header_wait_s: Annotated[float, Gt(0)] = 10.0
    """How long a request's head may take, from the connection's start or from the head's first byte; then the
    connection ends."""
    body_idle_s: Annotated[float, Gt(0)] = 30.0
    """Silence in the middle of a request's body after which it is refused with 408. This and the next two hold for
    gRPC messages too; there the bytes of the whole connection count."""
    body_bytes_per_s: Annotated[float, Ge(0)] = 1_024.0
    """Least rate at which a body has to come, over each ``body_idle_s`` for which it is waited for; below it 408. Zero:
    any. Time in which the upstream takes nothing does not count."""
    body_wait_s: Annotated[float, Gt(0)] = 1_800.0
    """How long a body is waited for altogether; then 408. Again without the time that the upstream takes."""
    write_idle_s: Annotated[float, Gt(0)] = 60.0
    """How long a client may take nothing of an answer that waits for it; then the connection is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flights(Section):
    """Concurrent misses of one item are one upstream request."""

    lease_s: Annotated[float, Ge(0), Le(60)] = 2.0
    """How long an item stays claimed by a worker that does not renew its claim: the most by which one that was killed
    delays others. Zero: every worker fetches for itself."""
    lock_s: Annotated[float, Gt(0), Le(600)] = 5.0
    """Longest wait for another request's answer; then a request goes on its own. What takes three times as long as its
    like took lately (at least 1.5 s, at most half of this) is not waited for any more, and asked for once more."""
    deadline_s: Annotated[float, Gt(0), Le(3_900)] = 190.0
    """After this time an embedding or a query that the vendor has not answered in full is given up (504); above the
    180 s that the vendor names for itself. ``upstream.read_timeout_s`` is for what only passes."""
    uncacheable_s: Annotated[float, Ge(0), Le(600)] = 10.0
    """After an answer that could not be kept, requests for the same item go on their own for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceRule(Section):
    """After its lifetime an entry of DashScope may still be served, if at all. Never what a write can make stale."""

    while_refresh_s: Annotated[float, Ge(0), Le(30 * 86_400)] = 0.0
    """For so long after its lifetime an entry is served at once, while one refresh runs; zero: never."""
    if_error_s: Annotated[float, Ge(0), Le(30 * 86_400)] = 0.0
    """For so long after its lifetime an entry is served when the vendor fails; zero: never."""
    if_error_for: tuple[Cause, ...] = tuple(Cause)
    """Which failures count: ``unreachable``, ``timeout``, ``server-error`` (5xx), ``throttled`` (429), ``busy`` (our
    own limits). What the vendor says of a request (400, 401, 403) never counts."""
    wait_s: Annotated[float, Gt(0), Le(3_900)] = 5.0
    """How long a request waits for a fresh answer while it has a stale one; a ``timeout`` then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Negative(Section):
    """For how long a worker repeats DashScope's error to the very same content; zero: never. Only these kinds."""

    invalid_parameter_s: Annotated[float, Ge(0), Le(300)] = 0.0
    """``InvalidParameter``: a value out of range, too many texts, a text too long."""
    empty_input_s: Annotated[float, Ge(0), Le(300)] = 0.0
    """``BadRequest.EmptyInput``."""
    illegal_input_s: Annotated[float, Ge(0), Le(300)] = 0.0
    """``BadRequest.IllegalInput``."""
    too_large_s: Annotated[float, Ge(0), Le(300)] = 0.0
    """``BadRequest.TooLarge``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching(Section):
    """Misses of several requests in one upstream request, and large requests in several; both are off by default."""

    window_ms: Annotated[float, Ge(0), Le(1_000)] = 0.0
    """How long a miss waits for others like it, to be asked for with them in one request; a full one is sent at once.
    Zero: each on its own."""
    max_bytes: Annotated[int, Ge(1)] = 8_192
    """Most bytes of texts that are put together; with this default, no more tokens than text-embedding-v4 takes in one
    text. A request with more goes on its own."""
    cut: bool = False
    """Whether a request with more items than the vendor takes is asked for in pieces, instead of being passed on for
    the vendor to refuse. Only for models whose cap is known."""
    max_pieces: Annotated[int, Ge(2)] = 25
    """Most pieces of one request; a larger one is passed on as it is. An answer of 1,000 vectors is 20 MB, and 0.3 s of
    a worker's time."""
    parallel: Annotated[int, Ge(1)] = 4
    """Pieces of one request that are at the upstream at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Section):
    """The tier inside each worker."""

    max_bytes: Annotated[int, Ge(0)] = 64 * 2**20
    """Room for entries in each worker; zero switches the tier off."""
    max_age_s: Annotated[float, Ge(0)] = 60.0
    """How long a row may be served without asking Redis again: the most by which it can outlive what
    other workers and replicas learn: that Redis has lost it, or that the vendor has refused its credential."""
    fast_lane: bool = True
    """Whether a request that is byte for byte one answered from this tier before is answered without parsing it, and a
    gRPC call like one before without planning it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes(Section):
    """How long entries stay fresh."""

    embedding_s: Annotated[float, Gt(0)] = EMBEDDING.lifetime_s
    """Seven days: a model's embedding of a text does not change."""
    vector_query_s: Annotated[float, Gt(0)] = VECTOR_QUERY.lifetime_s
    """One hour: matches, freshness against cost. A write that goes through the proxy voids them at once."""
    vector_stats_s: Annotated[float, Gt(0)] = VECTOR_STATS.lifetime_s
    """Half an hour: statistics and descriptions, what dashboards load. Voided by writes too."""
    jitter: Annotated[float, Ge(0), Le(0.5)] = 0.1
    """Each lifetime is spread by this share in both directions, so that what was filled together ends apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRule(Section):
    """What an operator knows better about one model."""

    ttl_s: Annotated[float, Gt(0)] | None = None
    """Lifetime of this model's entries, in place of the operation's."""
    batch_cap: Annotated[int, Ge(1)] | None = None
    """Texts per call that the vendor takes; larger batches are passed so that the vendor can refuse them, or cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Section):
    """What tells entries apart."""

    ignore_headers: tuple[HeaderName, ...] = ()
    """Further request headers that never change an answer (a tracing header of your own, for example)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector(Section):
    """DashVector: what writes do to answers, and how queries are asked."""

    settle_s: Annotated[float, Ge(0), Le(600)] = 2.0
    """After a write nothing is stored for so long: the vendor may not show the write at once.
    ``dashcache settle-probe`` measures it."""
    unknown_settle_s: Annotated[float, Ge(0), Le(3_600)] = 30.0
    """The same after a write whose end nobody has heard (a broken connection, a deadline, 5xx, a killed proxy): the
    vendor may execute it yet. Never shorter than ``settle_s``."""
    strict_writes: bool = False
    """Refuse a write (503) before it is forwarded when Redis cannot be told that answers become stale."""
    auth_lease_s: Annotated[float, Ge(0)] = 60.0
    """A credential that the vendor has accepted within this time may void what others use before its write is
    forwarded; strangers only after it succeeded."""
    overfetch_topk: Annotated[int, Ge(0), Le(1_024)] = 0
    """Ask for this many documents where a client asks for fewer, and serve later smaller top-k from that; zero: off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRule(Section):
    """One upstream: a vendor's host, chosen by listener port or by the Host asked for."""

    name: Annotated[str, Like(r"^[a-z0-9][a-z0-9-]{0,31}$")]
    """What logs, metrics and modes call it."""
    vendor: Literal["dashscope", "dashvector"] = "dashscope"
    """Whose API it speaks."""
    url: BaseUrl
    """Scheme, host, port of the vendor; for DashScope also the name of a preset, as for ``dashscope_url``."""
    grpc_url: VectorUrl | None = None
    """DashVector only: where it speaks gRPC; by default the host of ``url`` on port 443."""
    hosts: tuple[HostName, ...] = ()
    """Host names (without port) of ours that select it; DashVector's own host name does so anyway."""
    listen: Address | None = None
    """A data port of its own; everything that arrives there goes to this upstream."""
    grpc_listen: Address | None = None
    """DashVector only: a gRPC port of its own. A gRPC call names no host that we could choose by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Section):
    """The modes that hold when the proxy starts, until somebody switches."""

    mode: Mode = Mode.ON
    """For all operations: ``on``, ``bypass`` (nothing read, nothing stored) or ``shadow`` (forward, and compare)."""
    operations: dict[str, Mode] = field(default_factory=dict)
    """For single operations, by name: ``embedding = "shadow"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is worth a line."""
    format: Literal["auto", "json", "console"] = "auto"
    """``auto``: JSON unless standard error is a terminal."""
    requests: bool = True
    """One line per request."""
    hits_singly: Annotated[int, Ge(0)] = 100
    """Hits in a second, per worker, that have a line each; what comes beyond shares one, a few times a second. Counters
    count every one of them either way."""


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """The XDG state folder of whoever runs the proxy; RuntimeError when there is no home folder."""
    home = environ.get("HOME")
    state = environ.get("XDG_STATE_HOME") or (Path(home) if home else Path.home()) / ".local" / "state"
    return Path(state) / "dashcache"


class Listener(NamedTuple):
    """A data port that the settings ask for; *upstream* is empty where the request's Host chooses."""

    protocol: Protocol
    upstream: str
    address: str
    path: tuple[str, ...]
    """The setting that asks for it."""
    name: str
    """How messages call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Section):
    """What holds for the whole proxy."""

    profile: Profile = "production"
    """Which file of defaults is read after ``default.toml``."""
    workers: Annotated[int, Ge(0), Le(256)] = 0
    """Worker processes that share the data port; zero: one per core."""
    data_dir: LocalPath = field(default_factory=lambda: default_data_dir(os.environ))
    """The made key secret, modes, and the embedded server's data; by default ``dashcache`` in the XDG state folder."""
    key_secret: KeySecret | None = None
    """Keys and tags hang on it, so replicas that share a Redis must share it. 16 characters or more; made if absent."""
    dashscope_url: BaseUrl = "https://dashscope.aliyuncs.com"
    """The simple case, one upstream: the vendor's base URL without path, or a preset's name."""
    dashvector_url: VectorUrl | None = None
    """DashVector's endpoint, the simple case of one cluster: ``https://`` and its host; none: no DashVector."""
    dashvector_grpc_url: VectorUrl | None = None
    """Where that cluster speaks gRPC; by default its host on port 443. ``http://`` means plain text."""
    cache_status_on_pass: bool = False
    """Also add Cache-Status to answers that are not ours to cache."""
    listen: Listen = Listen()
    redis: Redis = Redis()
    breaker: Breaker = Breaker()
    upstream: UpstreamLimits = UpstreamLimits()
    limits: Limits = Limits()
    flights: Flights = Flights()
    grace: GraceRule = GraceRule()
    negative: Negative = Negative()
    batching: Batching = Batching()
    memory: Memory = Memory()
    lifetimes: Lifetimes = Lifetimes()
    vector: Vector = Vector()
    identity: Identity = Identity()
    start: Start = Start()
    log: Log = Log()
    models: dict[str, ModelRule] = field(default_factory=dict)
    upstreams: tuple[UpstreamRule, ...] = ()
    """Further upstreams; the one from ``dashscope_url`` is the default for whatever none of these claims."""

    def all_upstreams(self) -> tuple[Upstream, ...]:
        """
        Every upstream with its address resolved; the default one, named ``dashscope``, comes first.

        After it comes the one named ``dashvector``, if there is a ``dashvector_url``, then those of ``upstreams``.
        """
        stated = [Upstream(DEFAULT_UPSTREAM, "dashscope", *split_base_url(self.dashscope_url))]
        if self.dashvector_url is not None:
            http, grpc = _vector_endpoints(self.dashvector_url, self.dashvector_grpc_url)
            stated.append(Upstream(DEFAULT_VECTOR_UPSTREAM, "dashvector", *http, grpc=grpc))
        stated += [_further(rule) for rule in self.upstreams]
        return _with_own_hosts(stated, {split_address(listener.address)[0] for listener in self.listeners()})

    def listeners(self) -> tuple[Listener, ...]:
        """Every data port that is opened with these settings; the one for everybody, over HTTP, comes first."""
        listen, vector = self.listen, DEFAULT_VECTOR_UPSTREAM
        wanted: list[tuple[Protocol, str, str | None]] = [("http", "", listen.http), ("https", "", listen.https)]
        if self.dashvector_url is not None:
            wanted += [("grpc", vector, listen.grpc), ("grpcs", vector, listen.grpcs)]
        found = [
            Listener(protocol, upstream, address, ("listen", protocol), f"listen.{protocol}")
            for protocol, upstream, address in wanted
            if address
        ]
        for rule in self.upstreams:
            if rule.listen:
                found.append(Listener("http", rule.name, rule.listen, ("upstreams",), f"upstream {rule.name}"))
            if rule.grpc_listen:
                name = f"gRPC of upstream {rule.name}"
                found.append(Listener("grpc", rule.name, rule.grpc_listen, ("upstreams",), name))
        return tuple(found)


def _further(rule: UpstreamRule) -> Upstream:
    if rule.vendor == "dashscope":
        return Upstream(rule.name, rule.vendor, *split_base_url(rule.url), hosts=rule.hosts, listen=rule.listen)
    http, grpc = _vector_endpoints(rule.url, rule.grpc_url)
    return Upstream(
        rule.name, rule.vendor, *http, hosts=rule.hosts, listen=rule.listen, grpc=grpc, grpc_listen=rule.grpc_listen
    )


def _vector_endpoints(url: str, grpc_url: str | None) -> tuple[tuple[str, str, int], Endpoint]:
    http = split_base_url(url)
    return http, Endpoint(*split_vector_url(grpc_url)) if grpc_url else Endpoint(http[0], http[1], _GRPC_PORT)


def _with_own_hosts(upstreams: list[Upstream], ours: set[str]) -> tuple[Upstream, ...]:
    """
    *upstreams*, where DashVector's own host name selects its upstream, for who leads that name to us by a hosts file.

    Not a name that could mean another upstream, and none of *ours*: it would take the requests that name no vendor.
    """
    vendors = Counter(upstream.host for upstream in upstreams)
    claimed = {host for upstream in upstreams for host in upstream.hosts} | ours | {"localhost"}

    def selects(upstream: Upstream) -> bool:
        host = upstream.host
        is_free = vendors[host] == 1 and host not in claimed and not is_address(host)
        return upstream.vendor == "dashvector" and is_free

    return tuple(
        replace(upstream, hosts=(*upstream.hosts, upstream.host)) if selects(upstream) else upstream
        for upstream in upstreams
    )
