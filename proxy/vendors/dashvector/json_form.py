"""
DashVector's answers over HTTP and JSON: which are kept, and how one is given again.

An answer stays as the vendor wrote it, blanks included: the SDK cares whether a number is ``1`` or ``1.0``. A row's
envelope is the answer with a mark where the request id was; the mark is a control byte, which no JSON text contains.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import orjson

from proxy.core import judge
from proxy.core.entry import Row
from proxy.core.plan import NotStorable, Refusal
from proxy.core.request import HeaderLines
from proxy.vendors import json_members
from proxy.vendors.dashvector import common as dashvector
from proxy.vendors.json_members import spans

REQUEST_ID = b"\x04"

Document = Mapping[str, object]
Check = Callable[[Document], Refusal | None]
"""Why an answer with code 0 is not kept all the same; ``None`` when it is complete and right."""

_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


def code_of(body: bytes) -> int | None:
    """See ``dashvector.CodeOf``."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    code = document.get("code") if isinstance(document, dict) else None
    return code if type(code) is int else None


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """An operation's answers; implements ``dashvector.AnswerForm``."""

    check: Check

    def refusal(self, status: int, lines: HeaderLines) -> Refusal | None:
        """See ``core.judge``."""
        return judge.refusal(status, lines)

    def weight(self, body: bytes) -> int:
        """See ``dashvector.AnswerForm``."""
        return json_members.weight(body)

    def split(self, body: bytes, *, is_widened: bool) -> Row:
        """*body* as a row, if it is a success, complete and settled. Raises NotStorable."""
        try:
            document = orjson.loads(body)  # strict: refuses what could hide a mark or a second reading
        except orjson.JSONDecodeError as error:
            raise NotStorable(Refusal.SHAPE) from error
        if type(document) is not dict or type(document.get("code")) is not int:
            raise NotStorable(Refusal.SHAPE)
        # The status is 200 whatever happened: the code is the truth.
        verdict = dashvector.error_of(document["code"]) if document["code"] != 0 else self.check(document)
        if verdict is None and is_widened and not _is_ranked(document["output"]):
            verdict = Refusal.INCOMPLETE
        request_id = document.get("request_id")
        if verdict is not None or not isinstance(request_id, str):
            raise NotStorable(verdict or Refusal.SHAPE)
        start, end = spans(body)["request_id"]
        return Row(body[:start] + REQUEST_ID + body[end:], b"", b"", (), dashvector.origin(request_id))

    def join(self, row: Row, request_id: str, topk: int | None) -> bytes:
        """The answer in *row* with our id, cut to *topk* documents if that is given."""
        body = row.envelope.replace(REQUEST_ID, orjson.dumps(request_id))
        return body if topk is None else _cut(body, topk)


def _cut(body: bytes, topk: int) -> bytes:
    """*body* with no more than the first *topk* elements of its output."""
    start, end = spans(body)["output"]
    elements = _elements(body[start:end])
    if len(elements) <= topk:
        return body
    at = start + 1
    for element in map(bytes, elements[:topk]):
        at = body.index(element, at) + len(element)  # nothing but blanks and commas lies between
    return body[:at] + b"]" + body[end:]


def _is_ranked(output: object) -> bool:
    """Whether the documents of *output* all have scores, in order."""
    found = output if isinstance(output, list) else [None]
    scores = [document.get("score") for document in found if isinstance(document, dict)]
    numbers = [score for score in scores if isinstance(score, (int, float))]
    return len(numbers) == len(found) and dashvector.is_ranked(numbers)


# --- what each operation must have answered ---------------------------------------------------------------------------


def version(answer: Document) -> Refusal | None:
    """The service's version."""
    return None if isinstance(answer.get("version"), str) else Refusal.SHAPE


def names(answer: Document) -> Refusal | None:
    """A list of collections or partitions."""
    output = answer.get("output")
    is_right = isinstance(output, list) and all(isinstance(name, str) for name in output)
    return None if is_right else Refusal.SHAPE


def serving_collection(answer: Document) -> Refusal | None:
    """A collection's description, once it and its partitions serve: until then, whoever polls must see it change."""
    output = answer.get("output")
    partitions = output.get("partitions", {}) if isinstance(output, dict) else None
    if not isinstance(output, dict) or not isinstance(partitions, dict):
        return Refusal.SHAPE
    is_settled = all(status == "SERVING" for status in (output.get("status"), *partitions.values()))
    return None if is_settled else Refusal.INCOMPLETE


def serving_partition(answer: Document) -> Refusal | None:
    """A partition's status, once it serves."""
    if not isinstance(answer.get("output"), str):
        return Refusal.SHAPE
    return None if answer["output"] == "SERVING" else Refusal.INCOMPLETE


def stats(answer: Document) -> Refusal | None:
    """Counts of a collection or partition; not while its index is being built, which no write will announce."""
    output = answer.get("output")
    if not isinstance(output, dict) or type(output.get("total_doc_count")) not in (int, str):
        return Refusal.SHAPE
    return None if output.get("index_completeness", 1) == 1 else Refusal.INCOMPLETE


def documents(answer: Document) -> Refusal | None:
    """The documents that a query found."""
    return _documents(answer.get("output"))


def groups(answer: Document) -> Refusal | None:
    """The documents that a grouped query found."""
    output = answer.get("output")
    if not isinstance(output, list):
        return Refusal.SHAPE
    parts = [group.get("docs") if isinstance(group, dict) else None for group in output]
    return next((verdict for part in parts if (verdict := _documents(part))), None)


def fetched(answer: Document) -> Refusal | None:
    """Documents by their ids; those that do not exist are missing."""
    output = answer.get("output")
    return _documents(list(output.values())) if isinstance(output, dict) else Refusal.SHAPE


def _documents(found: object) -> Refusal | None:
    if not isinstance(found, list) or not all(isinstance(document, dict) for document in found):
        return Refusal.SHAPE
    if any(document.get("code", 0) != 0 for document in found):
        return Refusal.VENDOR_ERROR
    return None if all(isinstance(document.get("id"), str) for document in found) else Refusal.SHAPE
