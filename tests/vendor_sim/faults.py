"""Rules that make the simulator misbehave: named errors, wrong answers, delays; for the next N calls or by chance."""

import base64
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import orjson

from tests.vendor_sim.answers import Item, compact
from tests.vendor_sim.errors import named_error

Wrong = Literal[
    "drop_index",  # one embedding is missing
    "duplicate_index",  # two embeddings claim the same place
    "extra_index",  # one embedding too many
    "wrong_dimension",  # the first vector is one number short
    "null_value",  # the first number is null, as NaN would come out
    "code_in_200",  # status 200 with a code (native) or an error (compatible)
    "truncated_body",  # the connection ends in the middle of the body
    "disconnect",  # the connection ends before the answer
    "error_in_stream",  # the stream's second frame is an error; elsewhere nothing
]
_WRONGS = get_args(Wrong)


@dataclass(slots=True)
class Fault:
    """
    One rule. It applies to a call that fits *model*, *path* (a prefix) and *text* (asked among others) where given.

    *times* None applies for ever. Without *error* and *wrong* it only delays, or only adds *headers*.
    *status* replaces the error's own status.
    """

    error: str | None = None
    wrong: Wrong | None = None
    times: int | None = None
    probability: float = 1.0
    model: str | None = None
    path: str | None = None
    text: str | None = None
    latency_ms: float = 0.0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    applied: int = 0

    def __post_init__(self) -> None:
        if self.error is not None:
            named_error(self.error)
        if self.wrong is not None and self.wrong not in _WRONGS:
            raise ValueError(f"unknown kind of wrong answer: {self.wrong}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """A rule from its control-endpoint form: the same fields by name."""
        return cls(**value)

    def fits(self, path: str, model: str | None, texts: Sequence[str]) -> bool:
        """Whether the rule speaks of such a call and is not used up."""
        return (
            (self.times is None or self.applied < self.times)
            and (self.model is None or self.model == model)
            and (self.path is None or path.startswith(self.path))
            and (self.text is None or self.text in texts)
        )


class Faults:
    """The rules in force, asked in order; the first that fits and is drawn applies."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.rules: list[Fault] = []

    def add(self, *rules: Fault) -> None:
        """Put *rules* behind those in force."""
        self.rules.extend(rules)

    def clear(self) -> None:
        """Behave again."""
        self.rules.clear()

    def pick(self, path: str, model: str | None, texts: Sequence[str]) -> Fault | None:
        """The rule for this call, counted as applied; None when it shall go well."""
        for rule in self.rules:
            if rule.fits(path, model, texts) and self._random.random() < rule.probability:
                rule.applied += 1
                return rule
        return None


def spoil(items: list[Item], wrong: Wrong | None, index_name: str) -> list[Item]:
    """Make a list of embeddings wrong in the way of *wrong*; the kinds that are not about items change nothing."""
    if not items:
        return items
    if wrong == "drop_index":
        return items[:-1]
    if wrong == "extra_index":
        return [*items, {**items[-1], index_name: len(items)}]
    if wrong == "duplicate_index":
        again = {**items[-1], index_name: items[0][index_name]}
        return [*items[:-1], again] if len(items) > 1 else [*items, again]
    if wrong in ("wrong_dimension", "null_value") and "embedding" in items[0]:
        return [{**items[0], "embedding": _spoiled_vector(items[0]["embedding"], wrong)}, *items[1:]]
    return items


def _spoiled_vector(embedding: Any, wrong: str) -> Any:
    if isinstance(embedding, str):  # base64 of float32; a null has no form there, NaN has
        raw = base64.b64decode(embedding)
        raw = raw[:-4] if wrong == "wrong_dimension" else b"\0\0\xc0\x7f" + raw[4:]
        return base64.b64encode(raw).decode()
    numbers = orjson.loads(compact(embedding))
    return numbers[:-1] if wrong == "wrong_dimension" else [None, *numbers[1:]]
