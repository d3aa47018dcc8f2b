"""
The conditions of ``filter``: compiled once, then asked of each document's fields.

Comparison (``= != < <= > >=``), ``like`` (a prefix, with % at the end or without), ``in``, ``is null``,
``contain_any`` and ``contain_all`` on arrays, joined by ``and``, ``or``, ``not`` and parentheses; keywords in any case.
As in SQL, one on a null or absent field is neither true nor false, not even under ``not``: only ``is null`` finds it.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from tests.vendor_sim.dashvector_errors import refusal
from tests.vendor_sim.dashvector_model import Field

Fields = Mapping[str, Field]
Condition = Callable[[Fields], bool | None]

_MAX_LENGTH: Final = 40_960
_MAX_DEPTH: Final = 64
_TOKEN: Final = re.compile(
    r"""\s*(?: (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
             | (?P<text>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
             | (?P<name>`[^`]+`|[A-Za-z_][\w-]*)
             | (?P<sign><=|>=|!=|<>|==|[=<>(),\[\]]) )""",
    re.VERBOSE,
)
_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KEYWORDS: Final = {"and", "or", "not", "in", "like", "is", "null", "contain_any", "contain_all", "true", "false"}


def compiled(text: str) -> Condition:
    """The condition that *text* describes; refuses with InvalidFilter what it cannot read."""
    if len(text) > _MAX_LENGTH:
        raise refusal("InvalidFilter", f"longer than {_MAX_LENGTH} characters")
    return _Parser(text).whole()


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise refusal("InvalidFilter", f"at {text[position : position + 20]!r}")
        kind = match.lastgroup or ""
        word = match[kind]
        if kind == "name" and word.lower() in _KEYWORDS:
            kind, word = "keyword", word.lower()
        found.append((kind, word))
        position = match.end()
    return found


class _Parser:
    """One pass over the tokens, a method for each level of precedence."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._position = 0
        self._depth = 0

    def whole(self) -> Condition:
        condition = self._either()
        if self._position < len(self._tokens):
            raise refusal("InvalidFilter", f"unexpected {self._tokens[self._position][1]!r}")
        return condition

    def _take(self) -> tuple[str, str]:
        if self._position >= len(self._tokens):
            raise refusal("InvalidFilter", "ends too early")
        self._position += 1
        return self._tokens[self._position - 1]

    def _accept(self, word: str) -> bool:
        # Quoted texts and names keep their quotes, so they never equal a keyword or a sign.
        is_there = self._position < len(self._tokens) and self._tokens[self._position][1] == word
        self._position += is_there
        return is_there

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise refusal("InvalidFilter", f"{word!r} expected")

    def _either(self) -> Condition:
        condition = self._both()
        while self._accept("or"):
            condition = _or(condition, self._both())
        return condition

    def _both(self) -> Condition:
        condition = self._negated()
        while self._accept("and"):
            condition = _and(condition, self._negated())
        return condition

    def _negated(self) -> Condition:
        # Recursion is bounded, or a long row of parentheses would end in a RecursionError.
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise refusal("InvalidFilter", "too deep")
        try:
            if self._accept("not"):
                return _not(self._negated())
            if self._accept("("):
                condition = self._either()
                self._expect(")")
                return condition
            return self._simple()
        finally:
            self._depth -= 1

    def _simple(self) -> Condition:
        kind, word = self._take()
        if kind != "name":
            raise refusal("InvalidFilter", f"a field expected, not {word!r}")
        name = word.strip("`")
        if self._accept("is"):
            is_negated = self._accept("not")
            self._expect("null")
            return lambda fields: (_value(fields, name) is None) != is_negated
        is_negated = self._accept("not")
        condition = self._operation(name, negated=is_negated)
        return _not(condition) if is_negated else condition

    def _operation(self, name: str, *, negated: bool) -> Condition:
        kind, word = self._take()
        if word == "like" and kind == "keyword":
            return _like(name, self._constant())
        if word == "in" and kind == "keyword":
            return _in(name, self._constants())
        if word in ("contain_any", "contain_all") and kind == "keyword":
            return _contain(name, self._constants(), needs_all=word == "contain_all")
        if kind != "sign" or word not in _COMPARISONS or negated:
            raise refusal("InvalidFilter", f"an operator expected, not {word!r}")
        return _compare(name, _COMPARISONS[word], self._constant())

    def _constants(self) -> list[Any]:
        closing = ")"
        if not self._accept("("):
            self._expect("[")
            closing = "]"
        values = [self._constant()]
        while self._accept(","):
            values.append(self._constant())
        self._expect(closing)
        return values

    def _constant(self) -> Any:
        kind, word = self._take()
        if kind == "number":
            return float(word) if set(word) & set(".eE") else int(word)
        if kind == "text":
            quote = word[0]
            return re.sub(r"\\(.)", r"\1", word[1:-1].replace(quote * 2, quote))
        if kind == "keyword" and word in ("true", "false"):
            return word == "true"
        raise refusal("InvalidFilter", f"a constant expected, not {word!r}")


def _value(fields: Fields, name: str) -> Any:
    return fields[name].value if name in fields else None


def _or(left: Condition, right: Condition) -> Condition:
    def condition(fields: Fields) -> bool | None:
        answers = (left(fields), right(fields))
        return True if True in answers else None if None in answers else False

    return condition


def _and(left: Condition, right: Condition) -> Condition:
    def condition(fields: Fields) -> bool | None:
        answers = (left(fields), right(fields))
        return False if False in answers else None if None in answers else True

    return condition


def _not(inner: Condition) -> Condition:
    def condition(fields: Fields) -> bool | None:
        answer = inner(fields)
        return None if answer is None else not answer

    return condition


def _pair(value: Any, constant: Any, kind: str) -> tuple[Any, Any] | None:
    """Both sides in one type, None when there is none. A stored float is a float32, so the constant becomes one."""
    if isinstance(value, bool) or isinstance(constant, bool):
        return (value, constant) if isinstance(value, bool) and isinstance(constant, bool) else None
    if isinstance(value, str) or isinstance(constant, str):
        return (value, constant) if isinstance(value, str) and isinstance(constant, str) else None
    if isinstance(value, list):
        return None
    return (value, float(np.float32(constant))) if kind.endswith("FLOAT") else (value, constant)


def _compare(name: str, compare: Callable[[Any, Any], bool], constant: Any) -> Condition:
    def condition(fields: Fields) -> bool | None:
        value = _value(fields, name)
        pair = None if value is None else _pair(value, constant, fields[name].kind)
        return None if pair is None else compare(*pair)

    return condition


def _like(name: str, pattern: Any) -> Condition:
    if not isinstance(pattern, str) or "%" in pattern[:-1]:
        raise refusal("InvalidFilter", "like knows prefixes only")
    prefix = pattern.removesuffix("%")

    def condition(fields: Fields) -> bool | None:
        value = _value(fields, name)
        return value.startswith(prefix) if isinstance(value, str) else None

    return condition


def _in(name: str, constants: list[Any]) -> Condition:
    def condition(fields: Fields) -> bool | None:
        value = _value(fields, name)
        if value is None:
            return None
        pairs = (_pair(value, constant, fields[name].kind) for constant in constants)
        return any(pair is not None and pair[0] == pair[1] for pair in pairs)

    return condition


def _contain(name: str, constants: list[Any], *, needs_all: bool) -> Condition:
    decide = all if needs_all else any

    def condition(fields: Fields) -> bool | None:
        value = _value(fields, name)
        if not isinstance(value, list):
            return None
        kind = fields[name].kind
        pairs = ([_pair(item, constant, kind) for item in value] for constant in constants)
        return decide(any(pair is not None and pair[0] == pair[1] for pair in row) for row in pairs)

    return condition
