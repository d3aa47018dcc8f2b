"""
Secrets that can be searched for: unique strings, and proof that no form of them is where it must not be.

Used by every test that hands out a credential or a text and afterwards looks through logs, metrics, Redis and answers.
"""

import base64
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


def make_secret(prefix: str = "sk-") -> str:
    """A credential, fit for a header: ASCII, and nothing that any encoding would change."""
    return f"{prefix}canary{secrets.token_hex(16)}"


def make_text(prefix: str = "") -> str:
    """A text as users write them: letters beyond ASCII, quotes and a line feed, which each encoding writes its way."""
    return f'{prefix}canary {secrets.token_hex(16)} "ü世界"\n{secrets.token_hex(4)}'


def forms(canary: str) -> dict[str, frozenset[bytes]]:
    """
    How *canary* may look once it has leaked, by name of the form.

    Base64 depends on what stood before it, so there are three of each, less the characters that mix with neighbours.
    """
    plain = canary.encode()
    json_text = json.dumps(canary)[1:-1]
    json_utf8 = json.dumps(canary, ensure_ascii=False)[1:-1]
    return {
        "raw": frozenset({plain}),
        "hex": frozenset({plain.hex().encode()}),
        "base64": frozenset(_base64_forms(plain)),
        "json": frozenset({json_text.encode(), json_utf8.encode(), json_utf8.replace("/", "\\/").encode()}),
        "json in json": frozenset({json.dumps(json_text)[1:-1].encode(), json.dumps(json_utf8)[1:-1].encode()}),
        "percent": frozenset({quote(canary, safe="").encode(), quote(canary, safe="/").encode()}),
        "repr": frozenset({repr(canary)[1:-1].encode(), repr(plain)[2:-1].encode(), ascii(canary)[1:-1].encode()}),
        "utf-16": frozenset({canary.encode("utf-16-le"), canary.encode("utf-16-be")}),
    }


def _base64_forms(plain: bytes) -> Iterator[bytes]:
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + plain).rstrip(b"=")
        # Of the first group, what mixes with the bytes before; of the last, what will mix with those after.
        first = 0 if before == 0 else before + 1
        last = len(encoded) - (1 if (before + len(plain)) % 3 else 0)
        yield encoded[first:last]
        yield encoded[first:last].translate(bytes.maketrans(b"+/", b"-_"))


@dataclass(frozen=True, slots=True)
class Leak:
    """Where a canary was found: *around* shows its neighbourhood."""

    canary: str
    form: str
    offset: int
    around: bytes


def find(haystack: bytes | str, canaries: Iterable[str]) -> list[Leak]:
    """The first occurrence of each canary in each form. Case is ignored: an upper-cased secret is still a secret."""
    data = haystack.encode("utf-8", "surrogatepass") if isinstance(haystack, str) else haystack
    lowered = data.lower()
    found = []
    for canary in canaries:
        for form, spellings in forms(canary).items():
            # Base64 in lower case is not base64; the rest reads the same in any case.
            where = data if form == "base64" else lowered
            offsets = [where.find(word if form == "base64" else word.lower()) for word in spellings]
            hits = [offset for offset in offsets if offset >= 0]
            if hits:
                offset = min(hits)
                found.append(Leak(canary, form, offset, data[max(0, offset - 40) : offset + len(canary) + 40]))
    return found


def assert_absent(haystack: bytes | str, *canaries: str, where: str = "the data") -> None:
    """Fail if any canary is in *haystack*, in any form."""
    if not canaries:
        raise ValueError("nothing to look for")
    if leaks := find(haystack, canaries):
        lines = "\n".join(f"- {leak.form} at {leak.offset}: {leak.around!r}" for leak in leaks)
        raise AssertionError(f"canaries found in {where}:\n{lines}")


def assert_absent_from_files(where: Path, *canaries: str) -> int:
    """The same for a file, or for all names and contents below a folder; returns how many files were read."""
    paths = [where] if where.is_file() else [path for path in sorted(where.rglob("*")) if path.is_file()]
    for path in paths:
        assert_absent(str(path), *canaries, where=f"the name {path}")
        assert_absent(path.read_bytes(), *canaries, where=str(path))
    return len(paths)
