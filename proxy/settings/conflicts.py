"""Settings that are fine one by one but not together: every contradiction, with where it stands and what is allowed."""

import itertools
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from proxy.core.upstream import ALLOWED_VECTOR, split_vector_url
from proxy.settings.model import DEFAULT_UPSTREAM, DEFAULT_VECTOR_UPSTREAM, Settings, UpstreamRule
from proxy.settings.types import is_loopback, overlap
from proxy.vendors.dashvector.common import WRITE

ALWAYS_FORWARDED = "has no mode: a write is always forwarded, and makes stale what it changes"
"""What to say to who wants to switch writes."""

_UPSTREAMS = (("upstreams",),)


class Conflict(NamedTuple):
    """Where the settings stand that contradict each other, the likeliest culprit first, and what is wrong."""

    paths: tuple[tuple[str, ...], ...]
    text: str


def conflicts(settings: Settings) -> list[Conflict]:
    """Every way in which *settings* contradict each other; the loader refuses them. Reads the TLS files."""
    return [
        *_exposed_admin(settings),
        *_lone_grpc(settings),
        *_doubled_names(settings),
        *_rules(settings),
        *_doubled_listeners(settings),
        *_tls(settings),
        *_modes(settings),
    ]


def _exposed_admin(settings: Settings) -> Iterator[Conflict]:
    listen = settings.listen
    if listen.admin_token is None and not is_loopback(listen.admin):
        text = f"{listen.admin} can be reached from outside and no token is set; "
        text += "allowed: a loopback address, or any address with DASHCACHE_ADMIN_TOKEN"
        yield Conflict((("listen", "admin"), ("listen", "admin_token")), text)


def _lone_grpc(settings: Settings) -> Iterator[Conflict]:
    if settings.dashvector_grpc_url is not None and settings.dashvector_url is None:
        # What a write voids belongs to the cluster, and the URL says which one that is.
        text = "is of no use without the cluster's URL; allowed: together with DASHCACHE_DASHVECTOR_URL"
        yield Conflict((("dashvector_grpc_url",), ("dashvector_url",)), text)


def _doubled_names(settings: Settings) -> Iterator[Conflict]:
    taken = {DEFAULT_UPSTREAM: "dashscope_url"}
    if settings.dashvector_url is not None:
        taken[DEFAULT_VECTOR_UPSTREAM] = "dashvector_url"
    names = Counter([*taken, *(rule.name for rule in settings.upstreams)])
    for name in (name for name, count in names.items() if count > 1):
        kept = f" ({taken[name]} has it)" if name in taken else ""
        yield Conflict(_UPSTREAMS, f"the name {name} is taken twice{kept}; allowed: a name for each")
    hosts = Counter(host for rule in settings.upstreams for host in rule.hosts)
    for host in (host for host, count in hosts.items() if count > 1):
        yield Conflict(_UPSTREAMS, f"the host {host} is claimed twice; allowed: each host once")


def _rules(settings: Settings) -> Iterator[Conflict]:
    for rule in settings.upstreams:
        if not rule.hosts and rule.listen is None and rule.grpc_listen is None:
            ways = "hosts, listen, or both" if rule.vendor == "dashscope" else "hosts, listen, grpc_listen, or several"
            yield Conflict(_UPSTREAMS, f"nothing selects {rule.name}; allowed: {ways}")
        if rule.vendor == "dashvector":
            yield from _preset(rule)
            continue
        for name in ("grpc_url", "grpc_listen"):
            if getattr(rule, name) is not None:
                text = f"{rule.name} has a {name}, but DashScope speaks no gRPC; allowed: with vendor = dashvector"
                yield Conflict(_UPSTREAMS, text)


def _preset(rule: UpstreamRule) -> Iterator[Conflict]:
    try:
        split_vector_url(rule.url)
    except ValueError:  # it did pass as a base URL
        text = f"the url of {rule.name} is one of DashScope's presets; allowed for DashVector: {ALLOWED_VECTOR}"
        yield Conflict(_UPSTREAMS, text)


def _doubled_listeners(settings: Settings) -> Iterator[Conflict]:
    data = [(listener.name, listener.path, listener.address) for listener in settings.listeners()]
    # Beside the data port, as it always was: of two that share a port the first is named.
    listeners = [data[0], ("listen.admin", ("listen", "admin"), settings.listen.admin), *data[1:]]
    for (one, path, address), (other, other_path, other_address) in itertools.combinations(listeners, 2):
        if overlap(address, other_address):
            text = f"{one} ({address}) and {other} ({other_address}) share a port; allowed: two"
            yield Conflict((path, other_path), text)


def _modes(settings: Settings) -> Iterator[Conflict]:
    if WRITE in settings.start.operations:
        yield Conflict((("start", "operations", WRITE),), f"{ALWAYS_FORWARDED}; allowed: other operations")


def _tls(settings: Settings) -> Iterator[Conflict]:
    listen = settings.listen
    places = (("listen", "certificate"), ("listen", "key"), ("listen", "https"), ("listen", "grpcs"))
    if listen.certificate is not None and listen.key is not None:
        if fault := _tls_fault(listen.certificate, listen.key):
            yield Conflict(places, fault)
    elif listen.certificate is not None or listen.key is not None or listen.https or listen.grpcs:
        text = "TLS needs a certificate and its key; allowed: DASHCACHE_TLS_CERTIFICATE and DASHCACHE_TLS_KEY together"
        yield Conflict(places, text)


def _tls_fault(certificate: Path, key: Path) -> str:
    """What keeps the two PEM files from being used; empty if nothing does."""
    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}; allowed: a PEM file"
    try:
        # An empty password, so that a key with one fails instead of asking the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        return f"{certificate} and {key} are not a certificate and its key; allowed: PEM, the key without a passphrase"
    return ""
