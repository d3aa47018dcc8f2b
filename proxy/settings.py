"""
Typed settings: what can be set, in which unit, with which default, and why.

One table for everything: each field has its unit in its name, its default here, and its reason beside it (the text
under a field is what ``docs/settings.md`` prints). Reading files and the environment is ``settings_source``'s work.
"""

import ipaddress
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from proxy.core.modes import Mode
from proxy.core.upstream import Upstream, split_base_url

Profile = Literal["development", "staging", "production"]

DEFAULT_UPSTREAM = "dashscope"
"""The name of the upstream that ``dashscope_url`` makes."""

_CREDENTIAL_HEADERS = frozenset({"authorization", "x-dashscope-apikey", "x-dashscope-workspace"})
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


def _address(value: str) -> str:
    """``host:port``; brackets around an IPv6 host; port 0 for a free one."""
    host, _, port = value.rpartition(":")
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError("must be host:port, for example 127.0.0.1:8080 or [::1]:8080")
    if int(port) > 65535:
        raise ValueError("the port must be from 0 to 65535 (0: any free one)")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host.strip("[]"))
        except ValueError:
            raise ValueError("what stands in brackets is not an IPv6 address") from None
    return value


def split_address(value: str) -> tuple[str, int]:
    """A validated address as host (without brackets) and port."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(value: str) -> bool:
    """Whether the address (``host:port``) can only be reached from this machine."""
    host, _ = split_address(value)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _overlap(one: str, other: str) -> bool:
    """Whether two listeners would take each other's connections; port 0 never does, it is another one each time."""
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    if port == 0 or port != other_port:
        return False
    if _is_unspecified(host) or _is_unspecified(other_host):
        return True
    return host == other_host or (is_loopback(one) and is_loopback(other) and "localhost" in (host, other_host))


def _base_url(value: str) -> str:
    split_base_url(value)
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    """Checks the form only, and says nothing of the content: it may hold a password."""
    try:
        parts = urlsplit(value.get_secret_value())
        host, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError:
        raise ValueError("not a URL; allowed: redis://, rediss:// or unix://") from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("the scheme must be redis, rediss or unix")
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise ValueError("the path of the socket is missing; allowed: unix:///path/to/redis.sock")
    if parts.scheme != "unix" and not host:
        raise ValueError(f"the host is missing; allowed: {parts.scheme}://[user:password@]host[:port][/database]")
    return value


def _host_name(value: str) -> str:
    if not _HOST.fullmatch(name := value.lower()):
        raise ValueError("must be a host name without scheme and port, for example embeddings.internal")
    return name


def _ignorable_header(value: str) -> str:
    name = value.lower()
    if not _TOKEN.fullmatch(name):
        raise ValueError("must be the name of a header, for example x-trace-id")
    if name in _CREDENTIAL_HEADERS:
        # One caller would be given what another paid for.
        raise ValueError("names the caller and cannot be ignored; allowed: others")
    return name


Address = Annotated[str, AfterValidator(_address)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
HeaderName = Annotated[str, AfterValidator(_ignorable_header)]
HostName = Annotated[str, AfterValidator(_host_name)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]


class Section(BaseModel):
    """A group of settings: immutable, unknown names refused, no infinities; the text under a field describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Listen(Section):
    """Where the proxy accepts connections."""

    http: Address = "127.0.0.1:8080"
    """The data port: ``host:port``. Every path that arrives here is forwarded."""
    admin: Address = "127.0.0.1:9180"
    """The admin API, health and metrics; a listener of its own because the data port forwards every path."""
    admin_token: SecretStr | None = Field(None, min_length=1)
    """Required when the admin listener is not on loopback."""


class Redis(Section):
    """The shared tier."""

    url: RedisUrl | None = None
    """``redis://``, ``rediss://`` or ``unix://``; none starts a redis-server of our own. Never shown."""
    deadline_ms: int = Field(50, ge=1, le=5_000)
    """What a hit may wait for Redis at worst; slower counts as down. Far above a healthy answer (under 1 ms)."""
    max_connections: int = Field(64, ge=1, le=10_000)
    """Connections per worker."""
    max_pending_stores: int = Field(1_000, ge=1)
    """Background writes that may wait; beyond it entries are not written (and counted)."""
    key_prefix: str = Field("dashcache", pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    """First part of every key in Redis; deployments that share a server but not their entries need one each."""


class Breaker(Section):
    """The guard in front of Redis."""

    fail_max: int = Field(5, ge=1, le=1_000)
    """Failures in a row that open it."""
    reset_s: float = Field(2.0, gt=0, le=600)
    """How long it stays open until one request may try again."""


class UpstreamLimits(Section):
    """How upstreams are called."""

    max_inflight: int = Field(200, ge=1)
    """Connections per worker and upstream: what protects the vendor's quota when the cache is of no help."""
    connect_timeout_s: float = Field(5.0, gt=0)
    """Longest wait for a connection to the vendor."""
    read_timeout_s: float = Field(3_900.0, gt=0)
    """Silence after which an answer is given up; above the longest limit that the vendor names (3,600 s)."""
    keepalive_s: float = Field(15.0, ge=0)
    """How long an idle connection is kept; the vendor's own limit is not documented."""


class Limits(Section):
    """Bounds on what clients send and what is kept."""

    max_key_body_bytes: int = Field(4 * 2**20, ge=1_024)
    """Bodies up to this size are read to be keyed; larger ones stream through uncached."""
    max_answer_bytes: int = Field(32 * 2**20, ge=1_024)
    """Answers up to this size (decoded) are looked at; larger ones stream through unstored."""
    max_entry_bytes: int = Field(4 * 2**20, ge=1_024)
    """Entries larger than this are not stored: one of them would push out thousands of others."""
    header_bytes: int = Field(65_536, ge=8_190)
    """Longest header line, and longest request line."""
    header_lines: int = Field(256, ge=32)
    """Most header lines in one request."""
    keepalive_s: float = Field(75.0, gt=0)
    """How long an idle client connection is kept."""
    drain_s: float = Field(30.0, ge=0)
    """How long running requests may take after SIGTERM."""


class Memory(Section):
    """The tier inside each worker."""

    max_bytes: int = Field(64 * 2**20, ge=0)
    """Room for entries in each worker; zero switches the tier off."""
    max_age_s: float = Field(60.0, ge=0)
    """How long a row may be served without asking Redis again: the most by which it can outlive a purge."""


class Lifetimes(Section):
    """How long entries stay fresh."""

    embedding_s: float = Field(7.0 * 86_400, gt=0)
    """Seven days: a model's embedding of a text does not change."""
    jitter: float = Field(0.1, ge=0, le=0.5)
    """Each lifetime is spread by this share in both directions, so that what was filled together ends apart."""


class ModelRule(Section):
    """What an operator knows better about one model."""

    ttl_s: float | None = Field(None, gt=0)
    """Lifetime of this model's entries, in place of the operation's."""
    batch_cap: int | None = Field(None, ge=1)
    """Texts per call that the vendor takes; larger batches are passed so that the vendor can refuse them."""


class Identity(Section):
    """What tells entries apart."""

    ignore_headers: tuple[HeaderName, ...] = ()
    """Further request headers that never change an answer (a tracing header of your own, for example)."""


class UpstreamRule(Section):
    """One upstream: a vendor's host, chosen by listener port or by the Host asked for."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """What logs, metrics and modes call it."""
    vendor: Literal["dashscope"] = "dashscope"
    """Whose API it speaks."""
    url: BaseUrl
    """Scheme, host, port of the vendor; or the name of a preset, as for ``dashscope_url``."""
    hosts: tuple[HostName, ...] = ()
    """Host names (without port) of ours that select it."""
    listen: Address | None = None
    """A data port of its own; everything that arrives there goes to this upstream."""


class Start(Section):
    """The modes that hold when the proxy starts, until somebody switches."""

    mode: Mode = Mode.ON
    """For all operations: ``on``, ``bypass`` (nothing read, nothing stored) or ``shadow`` (forward, and compare)."""
    operations: dict[str, Mode] = Field(default_factory=dict)
    """For single operations, by name: ``embedding = "shadow"``."""


class Log(Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is worth a line."""
    format: Literal["auto", "json", "console"] = "auto"
    """``auto``: JSON unless standard error is a terminal."""
    requests: bool = True
    """One line per request."""


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """The XDG state folder of whoever runs the proxy; RuntimeError when there is no home folder."""
    home = environ.get("HOME")
    state = environ.get("XDG_STATE_HOME") or (Path(home) if home else Path.home()) / ".local" / "state"
    return Path(state) / "dashcache"


class Conflict(NamedTuple):
    """Settings that are fine one by one but not together: where they stand, and what is wrong."""

    paths: tuple[tuple[str, ...], ...]
    text: str


class Settings(Section):
    """What holds for the whole proxy."""

    profile: Profile = "production"
    """Which file of defaults is read after ``default.toml``."""
    workers: int = Field(0, ge=0, le=256)
    """Worker processes that share the data port; zero: one per core."""
    data_dir: Path = Field(default_factory=lambda: default_data_dir(os.environ))
    """The made key secret, modes, and the embedded server's data; by default ``dashcache`` in the XDG state folder."""
    key_secret: SecretStr | None = Field(None, min_length=1)
    """Keys and tags hang on it: replicas that share a Redis must share it. Made on first start if absent."""
    dashscope_url: BaseUrl = "https://dashscope.aliyuncs.com"
    """The simple case, one upstream: the vendor's base URL without path, or a preset's name."""
    cache_status_on_pass: bool = False
    """Also add Cache-Status to answers that are not ours to cache."""
    listen: Listen = Listen()
    redis: Redis = Redis()
    breaker: Breaker = Breaker()
    upstream: UpstreamLimits = UpstreamLimits()
    limits: Limits = Limits()
    memory: Memory = Memory()
    lifetimes: Lifetimes = Lifetimes()
    identity: Identity = Identity()
    start: Start = Start()
    log: Log = Log()
    models: dict[str, ModelRule] = Field(default_factory=dict)
    upstreams: tuple[UpstreamRule, ...] = ()
    """Further upstreams; the one from ``dashscope_url`` is the default for whatever none of these claims."""

    def all_upstreams(self) -> tuple[Upstream, ...]:
        """Every upstream with its address resolved; the default one, named ``dashscope``, comes first."""
        further = (
            Upstream(rule.name, rule.vendor, *split_base_url(rule.url), hosts=rule.hosts, listen=rule.listen)
            for rule in self.upstreams
        )
        return (Upstream(DEFAULT_UPSTREAM, "dashscope", *split_base_url(self.dashscope_url)), *further)

    def conflicts(self) -> list[Conflict]:
        """Every way in which these settings contradict each other; the loader refuses them."""
        return [*self._exposed_admin(), *self._doubled_upstreams(), *self._doubled_listeners()]

    def _exposed_admin(self) -> Iterable[Conflict]:
        if self.listen.admin_token is None and not is_loopback(self.listen.admin):
            text = f"{self.listen.admin} can be reached from outside and no token is set; "
            text += "allowed: a loopback address, or any address with DASHCACHE_ADMIN_TOKEN"
            yield Conflict((("listen", "admin"), ("listen", "admin_token")), text)

    def _doubled_upstreams(self) -> Iterable[Conflict]:
        paths = (("upstreams",),)
        names = Counter([DEFAULT_UPSTREAM, *(rule.name for rule in self.upstreams)])
        for name in (name for name, count in names.items() if count > 1):
            kept = " (dashscope_url has it)" if name == DEFAULT_UPSTREAM else ""
            yield Conflict(paths, f"the name {name} is taken twice{kept}; allowed: a name for each")
        hosts = Counter(host for rule in self.upstreams for host in rule.hosts)
        for host in (host for host, count in hosts.items() if count > 1):
            yield Conflict(paths, f"the host {host} is claimed twice; allowed: each host once")
        for rule in self.upstreams:
            if not rule.hosts and rule.listen is None:
                yield Conflict(paths, f"nothing selects {rule.name}; allowed: hosts, listen, or both")

    def _doubled_listeners(self) -> Iterable[Conflict]:
        listeners: list[tuple[str, tuple[str, ...], str]] = [
            ("listen.http", ("listen", "http"), self.listen.http),
            ("listen.admin", ("listen", "admin"), self.listen.admin),
            *((f"upstream {rule.name}", ("upstreams",), rule.listen) for rule in self.upstreams if rule.listen),
        ]
        for (one, path, address), (other, other_path, other_address) in itertools.combinations(listeners, 2):
            if _overlap(address, other_address):
                text = f"{one} ({address}) and {other} ({other_address}) share a port; allowed: two"
                yield Conflict((path, other_path), text)
