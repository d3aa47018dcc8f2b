"""The bodies of changes: what operators may order, and every mistake in words."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from proxy.admin.access import Refused
from proxy.control.live import EVERYTHING, MAX_REASON
from proxy.control.purges import MAX_MODEL, is_model
from proxy.core.jsontext import Ambiguous, parse
from proxy.core.modes import Mode
from proxy.core.purges import EVERY, Extent
from proxy.settings.conflicts import ALWAYS_FORWARDED
from proxy.settings.near import near
from proxy.vendors.dashvector import common as dashvector
from proxy.vendors.operations import OPERATIONS, named_by, switchable

LONGEST_S = 366 * 86_400.0

_FAULTS = {
    "missing": "is missing",
    "json_invalid": "is not JSON",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_long": "must have at most {max_length} characters",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
}
"""Pydantic's name of a fault, and the words for a person."""

Order = TypeVar("Order", bound=BaseModel)


class ReloadRefusedError(Exception):
    """Nothing has changed; *mistakes* say why, *status* and *code* are the admin API's."""

    def __init__(self, status: int, code: str, mistakes: list[str]) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.mistakes = mistakes


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not contain control characters")
    return text


def _known(name: str, info: ValidationInfo) -> str:
    # An order for a name with a typing error would be accepted, and do nothing.
    context = info.context or {}
    allowed = context[info.field_name]
    if name not in allowed:
        why = context["of_writes"] if info.field_name == "operation" and name in OPERATIONS else "unknown"
        raise ValueError(f"{why}; allowed: {', '.join(allowed)}{near(name, allowed) if why == 'unknown' else ''}")
    return name


def _model(name: str) -> str:
    if not is_model(name):
        raise ValueError(f"must be 1 to {MAX_MODEL} printable characters")
    return name


def _collection(name: str) -> str:
    if not dashvector.is_name(name):
        raise ValueError("must be a collection's name: 3 to 32 letters, digits, _ and -")
    return name


class ModeOrder(BaseModel):
    """The body of ``PUT /v1/mode``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    mode: Mode
    operation: Annotated[str, AfterValidator(_known)] = EVERYTHING
    upstream: Annotated[str, AfterValidator(_known)] = EVERYTHING
    for_s: float | None = Field(None, gt=0, le=LONGEST_S, allow_inf_nan=False)
    reason: Annotated[str, Field(max_length=MAX_REASON), AfterValidator(_printable)] = ""


class PurgeOrder(BaseModel):
    """The body of ``POST /v1/purge``: everything, or what all that is named has in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    all: bool = False
    upstream: Annotated[str, AfterValidator(_known)] | None = None
    operation: Annotated[str, AfterValidator(_known)] | None = None
    model: Annotated[str, AfterValidator(_model)] | None = None
    collection: Annotated[str, AfterValidator(_collection)] | None = None

    @property
    def extent(self) -> Extent:
        """What to purge."""
        return (self.upstream or EVERY, self.operation or EVERY, self.model or EVERY, self.collection or EVERY)

    @model_validator(mode="after")
    def _says_what(self, info: ValidationInfo) -> Self:
        is_named = self.extent != (EVERY,) * 4
        if self.all == is_named:
            raise ValueError('say either {"all": true}, or what: upstream, operation, model, collection')
        if not any(self._covers(name, served) for name, served in (info.context or {})["served"].items()):
            raise ValueError("no upstream of this proxy has anything in the cache to which all of this applies")
        return self

    def _covers(self, upstream: str, operations: Sequence[str]) -> bool:
        """Whether this can apply to an answer of one of *operations* of *upstream*."""
        return self.upstream in (None, upstream) and any(
            self.operation in (None, operation)
            and (self.model is None or operation in named_by("model"))
            and (self.collection is None or operation in named_by("collection"))
            for operation in operations
            if OPERATIONS[operation].is_switchable
        )


class ReloadOrder(BaseModel):
    """The body of ``POST /v1/reload``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def mode_order(body: bytes, served: Mapping[str, Sequence[str]]) -> ModeOrder:
    """The order in *body*; *served* are the upstreams with their operations. Raises Refused with every mistake."""
    allowed = {"operation": (EVERYTHING, *switchable()), "upstream": (EVERYTHING, *served)}
    return _read(ModeOrder, body, {**allowed, "of_writes": ALWAYS_FORWARDED})


def purge_order(body: bytes, served: Mapping[str, Sequence[str]]) -> PurgeOrder:
    """Likewise."""
    allowed = {"operation": switchable(), "upstream": tuple(served)}
    return _read(PurgeOrder, body, {**allowed, "served": served, "of_writes": "nothing of a write is kept"})


def reload_order(body: bytes) -> None:
    """Likewise: there is nothing to say."""
    _read(ReloadOrder, body, {})


def _read(kind: type[Order], body: bytes, context: Mapping[str, Any]) -> Order:
    try:
        parse(body)  # two members of one name would be read differently by whoever looks at them
        return kind.model_validate_json(body, context=context)
    except Ambiguous as error:
        raise Refused(400, "BadRequest", (f"the body is not plain JSON: {error}",)) from error
    except ValidationError as invalid:
        mistakes = [_mistake(kind, error) for error in invalid.errors(include_url=False, include_input=True)]
        raise Refused(400, "BadRequest", tuple(mistakes)) from invalid


def _mistake(kind: type[BaseModel], error: Any) -> str:  # noqa: ANN401  pydantic's dictionary
    where = ".".join(str(part) for part in error["loc"]) or "body"
    if error["type"] == "extra_forbidden":
        return f"{where[:64]}: unknown field; allowed: {', '.join(kind.model_fields)}"
    return f"{where[:64]}: {_words(error)}"


def _words(error: Any) -> str:  # noqa: ANN401  pydantic's dictionary
    """The fault in our own words."""
    kind, rule = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(rule["error"])
    if kind == "enum":
        modes = [mode.value for mode in Mode]
        return f"must be one of {', '.join(modes)}{near(error['input'], modes)}"
    words = _FAULTS.get(kind, "cannot be used")
    return words.format(**rule)
