"""
DashScope text embedding requests, both dialects: which are ours, what identifies each text, how to ask for fewer.

Native: ``POST /api/v1/services/embeddings/text-embedding/text-embedding``, texts in ``input.texts``.
Compatible (the shape of OpenAI's API): ``POST /compatible-mode/v1/embeddings``, texts in ``input``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from proxy.core import jsontext, judge
from proxy.core.entry import Row
from proxy.core.jsontext import Number, Tree
from proxy.core.plan import ErrorKind, Pass, PassReason, Read, Refusal, Scope, Write
from proxy.core.request import HeaderLines, Request
from proxy.vendors import json_members
from proxy.vendors.dashscope import common as dashscope
from proxy.vendors.dashscope.batch_limits import BatchLimits, Trial
from proxy.vendors.dashscope.embedding_answer import (
    COMPATIBLE_ANSWER,
    NATIVE_ANSWER,
    AnswerForm,
    Asked,
    join,
    lasting_error,
    split,
)
from proxy.vendors.operations import EMBEDDING

_MOST_MEMBERS = 256
"""The vendor documents ten."""

Members = dict[str, Tree]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the two ways to ask for the same vectors."""

    path: str
    texts_of: Callable[[Members], Tree]
    with_texts: Callable[[Members, Tree], Members]
    fields_of: Callable[[Members], Members]
    """Everything that can change the answer but the texts."""
    dimension_of: Callable[[Members], Tree]
    kinds_of: Callable[[Members], frozenset[str] | None]
    """Which vectors each row must have; ``None`` when the request asks for an unknown kind."""
    answer: AnswerForm


class EmbeddingAdapter:
    """Plans the text embedding requests of one dialect, batches within *limits*."""

    def __init__(self, dialect: Dialect, limits: BatchLimits, ignored_headers: frozenset[bytes] = frozenset()) -> None:
        self._dialect = dialect
        self._limits = limits
        self._ignored = ignored_headers

    def wants(self, method: str, path: str) -> bool:
        """Whether the route is this dialect's; any other spelling of the path is passed on."""
        return method == "POST" and path == self._dialect.path

    def operation_of(self, method: str, path: str) -> str:  # noqa: ARG002
        """``embedding``, in both dialects."""
        return EMBEDDING.name

    def write_of(self, method: str, path: str, headers: HeaderLines) -> Write | None:  # noqa: ARG002
        """None: asking for a vector changes nothing."""
        return None

    def precheck(self, request: Request) -> PassReason | None:
        """A reason to pass that the headers alone give."""
        return dashscope.precheck(request)

    def weight(self, body: bytes) -> int:
        """See ``core.plan.Adapter``."""
        return jsontext.weight(body)

    def plan(self, request: Request) -> Read | Pass:
        """The texts of *request* as items, or why it is passed."""
        try:
            return self._read(request)
        except jsontext.Ambiguous:
            return Pass(PassReason.AMBIGUOUS, EMBEDDING.name)

    def _read(self, request: Request) -> Read | Pass:
        dialect = self._dialect
        tree = jsontext.parse(request.body or b"", _MOST_MEMBERS)
        if not isinstance(tree, dict):
            return Pass(PassReason.UNKNOWN_SHAPE, EMBEDDING.name)
        model, texts = _string(tree.get("model")), _texts(dialect.texts_of(tree))
        if texts is None or model is None:
            return Pass(PassReason.UNKNOWN_SHAPE, EMBEDDING.name)
        if tree.get("stream") not in (None, False):
            return Pass(PassReason.EVENT_STREAM, EMBEDDING.name)
        trial = None
        if len(texts) > self._limits.listed(model):
            trial = self._limits.trial(request.upstream, model, len(texts))
            if trial is None:
                return Pass(PassReason.OVER_CAP, EMBEDDING.name)
        fields, kinds = dialect.fields_of(tree), dialect.kinds_of(tree)
        # A list beside the texts could speak of them one by one; asking for fewer texts would then shift its meaning.
        if kinds is None or _holds_list(fields):
            return Pass(PassReason.UNKNOWN_SHAPE, EMBEDDING.name)
        read = EmbeddingRead(
            dialect=dialect,
            tree=tree,
            body=request.body or b"",
            model=model,
            texts=texts,
            items=tuple(text.encode("utf-8") for text in texts),
            identity=(
                dashscope.scope(request),
                request.target.encode("utf-8", "surrogateescape"),
                dashscope.other_headers(request, self._ignored),
                jsontext.canonical(fields),
            ),
            asked=Asked(kinds, _positive(dialect.dimension_of(tree))),
            cap=self._limits.cap(model),
            trial=trial,
        )
        is_known = trial is None or trial.is_known(len(texts))
        return read if is_known else Pass(PassReason.OVER_CAP, EMBEDDING.name, read)


@dataclass(frozen=True, slots=True)
class EmbeddingRead:
    """A text embedding request, one item per text; implements ``core.plan.Read``."""

    dialect: Dialect
    tree: Members
    body: bytes
    model: str
    texts: tuple[str, ...]
    items: tuple[bytes, ...]
    identity: tuple[bytes, ...]
    asked: Asked
    cap: int
    """Texts per call; zero when the model is not known."""
    trial: Trial | None
    """See ``core.plan.Read``."""

    @property
    def operation(self) -> str:
        """``embedding``, in both dialects."""
        return EMBEDDING.name

    @property
    def credential(self) -> bytes:
        """See ``core.plan.Read``."""
        return self.identity[0]

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """None: a text's vector never changes for a model."""
        return ()

    @property
    def plain(self) -> Read | None:
        """None: nothing is asked for that the client did not ask for."""
        return None

    @property
    def batchable(self) -> "EmbeddingRead | None":
        """See ``core.plan.Read``; not where nobody knows how many texts the vendor takes."""
        return self if self.cap and self.trial is None else None

    def merged(self, parts: Sequence[tuple[Self, int]]) -> Self:
        """A request for these texts; see ``core.plan.Batchable``."""
        trees = [plan.tree for plan in {id(plan): plan for plan, _ in parts}.values()]
        # ``input`` is replaced; any other member is alike in all, or changes no answer (``user``, no parameters).
        alike = {
            name: value
            for name, value in self.tree.items()
            if name == "input" or all(name in tree and tree[name] == value for tree in trees)
        }
        texts = tuple(plan.texts[at] for plan, at in parts)
        tree = self.dialect.with_texts(alike, list(texts))
        items = tuple(plan.items[at] for plan, at in parts)
        return replace(self, tree=tree, body=jsontext.compact(tree), texts=texts, items=items)

    def refusal(self, status: int, headers: HeaderLines) -> Refusal | None:
        """See ``core.judge``."""
        return judge.refusal(status, headers)

    def lasting_error(self, status: int, body: bytes) -> ErrorKind | None:
        """See ``core.plan.Read``."""
        return lasting_error(self.dialect.answer, status, body)

    def narrowed(self, positions: Sequence[int]) -> bytes:
        """A body that asks for the texts at *positions*; the client's own bytes when those are all."""
        if list(positions) == list(range(len(self.texts))):
            return self.body
        wanted: Tree = [self.texts[position] for position in positions]
        return jsontext.compact(self.dialect.with_texts(self.tree, wanted))

    def answer_weight(self, body: bytes) -> int:
        """See ``core.plan.Read``: numbers weigh nothing more, as they are looked at by the thousand."""
        return json_members.weight(body)

    def split(self, body: bytes, positions: Sequence[int]) -> tuple[Row, ...]:
        """The rows in the vendor's answer; see ``core.plan.Read``."""
        weights = [max(1, len(self.items[position])) for position in positions]
        return split(self.dialect.answer, body, self.asked, weights)

    def join(self, rows: Sequence[Row], request_id: str) -> bytes:
        """The answer made of *rows*; see ``core.plan.Read``."""
        return join(rows, request_id)


def _texts(value: Tree) -> tuple[str, ...] | None:
    """The texts as a tuple; a lone string is a batch of one. ``None`` for anything else, an empty batch included."""
    members = [_string(member) for member in (value if isinstance(value, list) else [value])]
    texts = tuple(member for member in members if member is not None)
    return texts if texts and len(texts) == len(members) else None


def _string(value: Tree) -> str | None:
    return value if isinstance(value, str) and not isinstance(value, Number) else None


def _holds_list(value: Tree) -> bool:
    if isinstance(value, dict):
        return any(_holds_list(member) for member in value.values())
    return isinstance(value, list)


def _positive(value: Tree) -> int | None:
    """A dimension that was asked for as a whole number; ``None`` when nothing can be checked against it."""
    if isinstance(value, Number) and value.isascii() and value.isdigit():
        return int(value[:9])
    return None


def _member(tree: Tree, name: str) -> Tree:
    return tree.get(name) if isinstance(tree, dict) else None


def _native_texts(tree: Members) -> Tree:
    given = tree.get("input")
    # ``input.url`` is an asynchronous task; any other neighbour of the texts is unknown. Neither is keyed.
    return given["texts"] if isinstance(given, dict) and set(given) == {"texts"} else None


def _native_fields(tree: Members) -> Members:
    # SDKs differ in whether they send empty parameters; both mean the same vector.
    return {
        name: value for name, value in tree.items() if name != "input" and not (name == "parameters" and value == {})
    }


def _compatible_fields(tree: Members) -> Members:
    # The vendor documents that ``user``, a text, has no effect on the model; it may refuse anything else there.
    # Absent, float and base64 stay three formats.
    return {
        name: value
        for name, value in tree.items()
        if name != "input" and not (name == "user" and _string(value) is not None)
    }


_NATIVE_KINDS = {
    "dense": frozenset({"embedding"}),
    "sparse": frozenset({"sparse_embedding"}),
    "dense&sparse": frozenset({"embedding", "sparse_embedding"}),
}


def _native_kinds(tree: Members) -> frozenset[str] | None:
    asked = _member(tree.get("parameters"), "output_type")
    return _NATIVE_KINDS["dense"] if asked is None else _NATIVE_KINDS.get(asked) if isinstance(asked, str) else None


NATIVE = Dialect(
    path="/api/v1/services/embeddings/text-embedding/text-embedding",
    texts_of=_native_texts,
    with_texts=lambda tree, texts: {**tree, "input": {"texts": texts}},
    fields_of=_native_fields,
    dimension_of=lambda tree: _member(tree.get("parameters"), "dimension"),
    kinds_of=_native_kinds,
    answer=NATIVE_ANSWER,
)

COMPATIBLE = Dialect(
    path="/compatible-mode/v1/embeddings",
    texts_of=lambda tree: tree.get("input"),
    with_texts=lambda tree, texts: {**tree, "input": texts},
    fields_of=_compatible_fields,
    dimension_of=lambda tree: tree.get("dimensions"),
    kinds_of=lambda _tree: frozenset({"embedding"}),
    answer=COMPATIBLE_ANSWER,
)
