"""
The forms in which settings are written: addresses, base URLs, names of hosts and headers, and how each is checked.

A form's ValueError names the fault and what is allowed; none repeats what could be a secret. Where settings are loaded,
pydantic asks each form how it is checked. Only then is it imported: workers need the types, and not 9 MiB of pydantic.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar
from urllib.parse import parse_qsl, urlsplit

from proxy.core.upstream import split_base_url, split_vector_url

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

Value = TypeVar("Value")

_CREDENTIAL_HEADERS = frozenset(
    {"authorization", "x-dashscope-apikey", "x-dashscope-workspace", "dashvector-auth-token"}
)
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")
_MIN_SECRET = 16
_REDIS_OPTIONS = frozenset(
    {
        "db",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_min_version",
    }
)
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


class SecretText:
    """
    Text that nothing shows: no message, no ``repr``, no encoder that does not ask for it by ``reveal``.

    Not a dataclass, as encoders would look into one.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text in clear."""
        return self._text

    def __repr__(self) -> str:
        return "SecretText(...)"

    def __len__(self) -> int:
        return len(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretText) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


@dataclass(frozen=True, slots=True)
class Form(Generic[Value]):
    """How a value is written: *check* returns it in the form in which it is used, or raises ValueError."""

    check: Callable[[Value], Value]

    def __get_pydantic_core_schema__(self, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_after_validator_function(self.check, handler(source))


@dataclass(frozen=True, slots=True)
class Like:
    """Text that *pattern* describes."""

    pattern: str

    def __get_pydantic_core_schema__(self, _source: object, _handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.str_schema(pattern=self.pattern)


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


def is_address(host: str) -> bool:
    """Whether *host* is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def overlap(one: str, other: str) -> bool:
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


def _vector_url(value: str) -> str:
    split_vector_url(value)
    return value


def _absolute(value: Path) -> Path:
    """Every process of ours must mean the same place, whatever its working folder."""
    try:
        return value.expanduser().absolute()
    except RuntimeError:
        raise ValueError("begins with ~ and there is no such home folder; allowed: a path") from None


def _key_secret(value: SecretText) -> SecretText:
    if len(value) < _MIN_SECRET:
        raise ValueError(f"has fewer than {_MIN_SECRET} characters; allowed: {_MIN_SECRET} or more, best random ones")
    return value


def _redis_url(value: SecretText) -> SecretText:
    """Checks the form only, and says nothing of the content: it may hold a password."""
    try:
        parts = urlsplit(value.reveal())
        host, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError:
        raise ValueError("not a URL; allowed: redis://, rediss:// or unix://") from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("the scheme must be redis, rediss or unix")
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise ValueError("the path of the socket is missing; allowed: unix:///path/to/redis.sock")
    if parts.scheme != "unix" and not host:
        raise ValueError(f"the host is missing; allowed: {parts.scheme}://[user:password@]host[:port][/database]")
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ValueError("the database must be a number")
    _redis_options(parts.query)
    return value


def _redis_options(query: str) -> None:
    """Raises ValueError for an option that we do not support; shows only what cannot be a part of a password."""
    try:
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))]
    except ValueError:
        names = [""]
    for name in names:
        if name not in _REDIS_OPTIONS:
            shown = f"the option {name}" if re.fullmatch(r"[a-z][a-z_]{0,31}", name) else "what stands after the ?"
            raise ValueError(f"{shown} is not supported; allowed: {', '.join(sorted(_REDIS_OPTIONS))}")


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


Address = Annotated[str, Form(_address)]
BaseUrl = Annotated[str, Form(_base_url)]
HeaderName = Annotated[str, Form(_ignorable_header)]
HostName = Annotated[str, Form(_host_name)]
KeySecret = Annotated[SecretText, Form(_key_secret)]
LocalPath = Annotated[Path, Form(_absolute)]
RedisUrl = Annotated[SecretText, Form(_redis_url)]
VectorUrl = Annotated[str, Form(_vector_url)]
