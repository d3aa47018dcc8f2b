"""
Which errors of an upstream speak of nobody's items, so that they are true of whoever asked for other ones too.

A request of ours may hold fewer items than its client's, others' beside them, or the same in another order. What the
upstream says of "item 1" is then said of something else. Only an error about a credential, a quota or the upstream's
own state is true for everybody, and only if its text names no position: a number that could be one, in whatever words.
"""

import json
import re
from collections.abc import Iterator

_OF_A_CREDENTIAL_OR_A_QUOTA = frozenset({401, 403, 429})
_SERVER_ERRORS = range(500, 600)

_IDS = frozenset({"request_id", "requestid", "id", "trace_id"})
"""Members whose digits count nothing."""
# Ids in texts, tags of HTML (<h1>), and versions (nginx/1.25.3, v4): digits that are no numbers.
_NO_NUMBERS = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b|<[^<>]*>|/\d+(?:\.\d+)+|\bv\d+",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+")
_WORDS = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten"
    r"|(?<!per )\b\w*(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|teenth|tieth)|last)\b"
    r"|第",
    re.IGNORECASE,
)
_MOST_DIGITS = 9


def speaks_of_nobody(status: int, body: bytes, items: int) -> bool:
    """
    Whether an error with this *status* and (decoded) *body*, to a request for so many *items*, is true for everybody.

    In doubt it is not: then somebody has to ask once more, and that is all.
    """
    if status not in _OF_A_CREDENTIAL_OR_A_QUOTA and status not in _SERVER_ERRORS:
        return False
    try:
        text = body.decode("utf-8")
        texts = _texts(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else iter((text,))
        return not any(_names_a_position(part, items) for part in texts)
    except (ValueError, RecursionError):
        return False


def _texts(value: object) -> Iterator[str]:
    """All that stands in a JSON document, names too, but for ids."""
    if isinstance(value, dict):
        for name, member in value.items():
            if name.lower() not in _IDS or isinstance(member, (dict, list)):
                yield name
                yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)
    elif not isinstance(value, bool) and value is not None:
        yield str(value)


def _names_a_position(text: str, items: int) -> bool:
    text = _NO_NUMBERS.sub(" ", text)
    if _WORDS.search(text):
        return True
    # Counted from 0 or from 1: whatever is larger than their number is no position.
    numbers = (digits.lstrip("0") or "0" for digits in _NUMBER.findall(text))
    return any(len(number) <= _MOST_DIGITS and int(number) <= items for number in numbers)
