"""
Where settings come from: ``default.toml``, the profile's file, the operator's file, then the environment.

The only reader of configuration files and of the environment; pydantic checks what they hold. Environment names are
derived from the sections in ``settings``, so none can be missing. Every mistake is found before any is reported, and no
secret is ever printed.
"""

import difflib
import enum
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from proxy.core.errors import ConfigError
from proxy.core.upstream import ALLOWED, ALLOWED_VECTOR
from proxy.settings.conflicts import conflicts
from proxy.settings.model import Profile, Section, Settings, default_data_dir
from proxy.settings.near import near
from proxy.settings.types import Like, SecretText

SettingPath = tuple[str, ...]
"""Where a setting stands: ``("redis", "url")``. In a leaf's path ``*`` stands for any key or position."""

PREFIX = "DASHCACHE_"
INTERNAL_PREFIX = "DASHCACHE_INTERNAL_"
"""What our own processes tell each other; never a setting."""

CONTROL_NAMES = {
    "DASHCACHE_CONFIG": "A TOML file of your own, read after the profile's file.",
    "DASHCACHE_CONFIG_DIR": "The folder with `default.toml` and the profiles' files. By default the packaged one.",
}
"""Names that tell where to read; not settings themselves."""

_FIXED_NAMES: dict[SettingPath, str] = {
    ("listen", "http"): "DASHCACHE_HTTP_LISTEN",
    ("listen", "https"): "DASHCACHE_HTTPS_LISTEN",
    ("listen", "grpc"): "DASHCACHE_GRPC_LISTEN",
    ("listen", "grpcs"): "DASHCACHE_GRPCS_LISTEN",
    ("listen", "certificate"): "DASHCACHE_TLS_CERTIFICATE",
    ("listen", "key"): "DASHCACHE_TLS_KEY",
    ("listen", "admin"): "DASHCACHE_ADMIN_LISTEN",
    ("listen", "admin_token"): "DASHCACHE_ADMIN_TOKEN",
    ("redis", "url"): "REDIS_URL",
}
"""Names that deployments rely on and that differ from the derived ones."""

_VECTOR_URLS = frozenset({"dashvector_url", "dashvector_grpc_url", "grpc_url"})

_SETTINGS = TypeAdapter(Settings)

# Kubernetes and Docker links announce a service called "dashcache" to every neighbour by names that begin like ours.
_ANNOUNCED = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: where it stands, its section and field, its environment name if one line of text can hold it."""

    path: SettingPath
    section: type[Section]
    field: Field[object]
    environment: str | None

    @property
    def is_secret(self) -> bool:
        """Whether its value must never be printed."""
        return SecretText in self.parts

    @property
    def parts(self) -> tuple[object, ...]:
        """Its type and what that is made of, rules too, outermost first."""
        return _parts(self.field)

    def fits(self, path: SettingPath) -> bool:
        """Whether *path* is this setting or something inside it."""
        pairs = zip(self.path, path, strict=False)
        return len(path) >= len(self.path) and all(mine in ("*", theirs) for mine, theirs in pairs)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, where each came from (a file's name, or ``environment NAME``), and what an operator should know."""

    settings: Settings
    sources: Mapping[SettingPath, str]
    warnings: tuple[str, ...]


def load(environ: Mapping[str, str], config_dir: Path | None = None) -> Settings:
    """The settings in force; ConfigError with every mistake at once."""
    return load_with_sources(environ, config_dir).settings


def load_with_sources(environ: Mapping[str, str], config_dir: Path | None = None) -> Loaded:
    """As ``load``, with where each setting came from."""
    gathered = _Gathered()
    gathered.add_files(environ, config_dir)
    gathered.add_environment(environ)
    settings = gathered.validated()
    if settings is None or gathered.mistakes:
        raise ConfigError(gathered.mistakes)
    return Loaded(settings, gathered.sources, tuple(gathered.warnings))


def stated_data_dir(environ: Mapping[str, str]) -> Path | None:
    """Where the data folder is, as far as that can be said with mistakes in everything else."""
    gathered = _Gathered()
    gathered.add_files(environ, None)
    gathered.add_environment(environ)
    stated = gathered.tree.get("data_dir")
    try:
        return Path(stated).expanduser().absolute() if isinstance(stated, str | Path) else None
    except RuntimeError:
        return None


def environment_names() -> dict[str, SettingPath]:
    """Every environment name and the setting that it sets."""
    return {leaf.environment: leaf.path for leaf in leaves() if leaf.environment}


@cache
def leaves() -> tuple[Leaf, ...]:
    """Every setting, in the order of the sections."""
    return tuple(_walk(Settings, ()))


def _walk(section: type[Section], prefix: SettingPath) -> Iterator[Leaf]:
    for each in fields(section):
        path = (*prefix, each.name)
        inner = next((part for part in _parts(each) if isinstance(part, type) and issubclass(part, Section)), None)
        if inner is not None:
            yield from _walk(inner, path if inner is each.type else (*path, "*"))
            continue
        is_text = "*" not in path and get_origin(each.type) is not dict
        yield Leaf(path, section, each, _FIXED_NAMES.get(path, _derived_name(path)) if is_text else None)


def _parts(field: Field[object]) -> tuple[object, ...]:
    found: list[object] = []
    waiting: list[object] = [field.type]
    while waiting:
        kind = waiting.pop(0)
        found.append(kind)
        if get_origin(kind) is not Literal:
            waiting.extend(get_args(kind))
    return tuple(found)


def _derived_name(path: SettingPath) -> str:
    return PREFIX + "_".join(path).upper()


def dotted(path: SettingPath) -> str:
    """A path as TOML writes it: ``models."qwen3.5-embedding".ttl_s``."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_*-]+", part) else f'"{part}"' for part in path)


@dataclass
class _Gathered:
    """What the layers said so far, and every mistake in them."""

    tree: dict[str, Any] = field(default_factory=dict)
    sources: dict[SettingPath, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_files(self, environ: Mapping[str, str], config_dir: Path | None) -> None:
        """``default.toml``, the profile's file, the operator's file."""
        folder = config_dir or config_folder(environ)
        self._add(self._read(folder / "default.toml"), "default.toml")
        profile = _stated(environ, "DASHCACHE_PROFILE") or self.tree.get("profile", "production")
        if profile in get_args(Profile):  # otherwise validation says what is wrong with it
            self._add_chosen(folder / f"{profile}.toml", f"{profile}.toml", profile)
        if operator := _stated(environ, "DASHCACHE_CONFIG"):
            self._add_chosen(Path(operator), operator, profile)

    def _add_chosen(self, file: Path, label: str, profile: object) -> None:
        """A file that is read after the profile is chosen, so it cannot choose another one."""
        layer = self._read(file)
        if layer.pop("profile", profile) != profile:
            self.mistakes.append(f"{label}: profile: cannot be chosen here; allowed: default.toml or DASHCACHE_PROFILE")
        self._add(layer, label)

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            self.mistakes.append(f"{file}: cannot be read ({error.strerror}); allowed: a TOML file")
        except UnicodeDecodeError:
            self.mistakes.append(f"{file}: is not UTF-8; allowed: a TOML file")
        except tomllib.TOMLDecodeError as error:
            self.mistakes.append(f"{file}: is not TOML: {error}")
        return {}

    def _add(self, layer: dict[str, Any], label: str) -> None:
        _merge(self.tree, layer)
        self.sources.update(dict.fromkeys(_ends(layer), label))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """The variables; an empty one counts as not set, as compose files pass empty ones on."""
        for leaf in leaves():
            if leaf.environment and (text := _stated(environ, leaf.environment)):
                self._add(_nested(leaf.path, _from_text(leaf, text)), f"environment {leaf.environment}")
        for name in sorted(environ):
            if _is_unknown(name, environ[name]):
                self.mistakes.append(f"{name}: unknown name; {_near_environment(name)}")
        if "data_dir" not in self.tree:
            try:
                self.tree["data_dir"] = default_data_dir(environ)
            except RuntimeError:
                self.tree["data_dir"] = "."  # so that the rest is still checked
                self.mistakes.append("DASHCACHE_DATA_DIR: is not set and there is no home folder; allowed: a folder")

    def validated(self) -> Settings | None:
        """The settings, or None; mistakes are added either way."""
        wrong: list[SettingPath] = []
        try:
            settings = checked(self.tree)
        except ValidationError as invalid:
            for error in invalid.errors(include_url=False):
                path = tuple(str(part) for part in error["loc"])
                wrong.append(path)
                self.mistakes.append(f"{self._where(path)}: {_fault(error, path)}")
            # What is wrong falls out, so that the rest can be checked together in the same run.
            settings = checked(_without(self.tree, wrong))
        for conflict in conflicts(settings):
            if not any(path[: len(bad)] == bad for path in conflict.paths for bad in wrong):
                stated = [path for path in conflict.paths if not source(self.sources, path).startswith("default")]
                self.mistakes.append(f"{self._where((stated or list(conflict.paths))[0])}: {conflict.text}")
        return settings

    def _where(self, path: SettingPath) -> str:
        label = source(self.sources, path)
        return label.removeprefix("environment ") if label.startswith("environment ") else f"{label}: {dotted(path)}"


def checked(tree: Mapping[str, object]) -> Settings:
    """What *tree* says, each setting for itself; ValidationError with every mistake."""
    return _SETTINGS.validate_python(tree)


def source(sources: Mapping[SettingPath, str], path: SettingPath) -> str:
    """Where *path* was set: itself, what holds it, or what it holds; ``default`` when nobody did."""
    for length in range(len(path), 0, -1):
        if path[:length] in sources:
            return sources[path[:length]]
    return next((label for known, label in sources.items() if known[: len(path)] == path), "default")


def config_folder(environ: Mapping[str, str]) -> Path:
    """Where the configuration files are: stated, or in the wheel, or in the repository."""
    if stated := _stated(environ, "DASHCACHE_CONFIG_DIR"):
        return Path(stated)
    packaged = Path(__file__).parents[1] / "_config"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "config"


def _stated(environ: Mapping[str, str], name: str) -> str:
    """A variable's text; white space around it is dropped, as secrets read from files end with a line break."""
    return environ.get(name, "").strip()


def _from_text(leaf: Leaf, text: str) -> str | list[str]:
    if get_origin(leaf.field.type) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _nested(path: SettingPath, value: object) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return value if isinstance(value, dict) else {}


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay *layer* over *into*: tables join, everything else (lists too) replaces."""
    for name, value in layer.items():
        if not isinstance(value, dict):
            into[name] = value
        elif isinstance(below := into.setdefault(name, {}), dict):  # else it is a mistake, and stays to be found
            _merge(below, value)


def _ends(layer: Mapping[str, Any], prefix: SettingPath = ()) -> Iterator[SettingPath]:
    for name, value in layer.items():
        if isinstance(value, dict) and value:
            yield from _ends(value, (*prefix, name))
        else:
            yield (*prefix, name)


def _without(value: Any, wrong: list[SettingPath], here: SettingPath = ()) -> Any:  # noqa: ANN401 - any TOML value
    """*value* without what stands at the *wrong* paths; a list's item goes as a whole."""
    if isinstance(value, dict):
        return {
            name: _without(item, wrong, (*here, name)) for name, item in value.items() if (*here, name) not in wrong
        }
    if isinstance(value, list):
        spoilt = {path[len(here)] for path in wrong if path[: len(here)] == here and len(path) > len(here)}
        return [item for position, item in enumerate(value) if str(position) not in spoilt]
    return value


def _is_unknown(name: str, value: str) -> bool:
    """Whether a variable claims to be ours and is not."""
    if not name.startswith(PREFIX) or name.startswith(INTERNAL_PREFIX):
        return False
    if name in environment_names() or name in CONTROL_NAMES:
        return False
    return not (_ANNOUNCED.fullmatch(name) or (name.endswith("_PORT") and "://" in value))


def _near_environment(name: str) -> str:
    """The nearest name; what the regular name of a renamed setting would be leads to the one it has."""
    spellings = {_derived_name(leaf.path): leaf.environment for leaf in leaves()}
    spellings |= {known: known for known in (*environment_names(), *CONTROL_NAMES)}
    short = {spelling.removeprefix(PREFIX): known for spelling, known in spellings.items()}
    nearest = difflib.get_close_matches(name.removeprefix(PREFIX), short, n=1, cutoff=0)[0]
    return f"nearest known: {short[nearest]}" if short[nearest] else "can only be set in a TOML file"


def _near_setting(path: SettingPath) -> str:
    known: dict[str, None] = {}
    for leaf in leaves():
        for length in range(1, len(leaf.path) + 1):
            begin = leaf.path[:length]
            star = begin.index("*") if "*" in begin else length
            if star == length:
                known[dotted(begin)] = None
            elif begin[:star] == path[:star] and star < min(length, len(path)) - 1:
                known[dotted((*path[: star + 1], *begin[star + 1 :]))] = None
    return difflib.get_close_matches(dotted(path), known, n=1, cutoff=0)[0]


def _fault(error: ErrorDetails, path: SettingPath) -> str:
    """What is wrong at *path*, and what is allowed there."""
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown name; nearest known: {_near_setting(path)}"
    leaf = next((leaf for leaf in leaves() if leaf.fits(path)), None)
    if error["type"] == "tuple_type":
        return "is not a list; allowed: a list"
    if error["type"] == "dict_type" or leaf is None:
        return "is not a table; allowed: a table"
    if error["type"] == "missing":
        return f"is missing; allowed: {allowed(leaf)}"
    value = error["input"]
    # A URL may hold a password where none belongs.
    hidden = leaf.is_secret or leaf.path[-1].endswith("url") or not isinstance(value, str | int | float)
    shown = "" if hidden else f"{value!r:.60} "
    if error["type"] == "value_error":
        return f"{shown}{error['ctx']['error']}"
    return f"{shown}cannot be used; allowed: {allowed(leaf)}{'' if hidden else near(value, choices(leaf))}"


def choices(leaf: Leaf) -> tuple[str, ...]:
    """The values of which a setting has one; empty if there is no list of them."""
    for part in leaf.parts:
        if get_origin(part) is Literal:
            return get_args(part)
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return tuple(member.value for member in part)
    return ()


def allowed(leaf: Leaf) -> str:
    """What may stand in a setting, in words."""
    parts = leaf.parts
    if known := choices(leaf):
        return "one of " + ", ".join(known)
    if bool in parts:
        return "true or false"
    if int in parts or float in parts:
        return ("a whole number" if int in parts else "a number") + _bounds(parts)
    if leaf.path[-1].endswith("url") and not leaf.is_secret:
        return ALLOWED_VECTOR if leaf.path[-1] in _VECTOR_URLS else ALLOWED
    like = next((part for part in parts if isinstance(part, Like)), None)
    if like is not None:
        return f"text like {like.pattern}"
    return "text that is not empty"


def _bounds(parts: tuple[object, ...]) -> str:
    words = {Ge: "at least", Gt: "above", Le: "at most"}
    rules = [rule for rule in parts if type(rule) in words]
    return "".join(f", {words[type(rule)]} {getattr(rule, type(rule).__name__.lower())}" for rule in rules)
