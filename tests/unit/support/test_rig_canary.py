"""The search for secrets finds them in every disguise; a search that finds nothing must mean that nothing is there."""

import base64
import json
from urllib.parse import quote

import pytest

from tests.support import canary
from tests.support.redis_server import RedisServer

# Random, so never part of a test's name: xdist's workers must agree on the names.
SECRET, TEXT = canary.make_secret(), canary.make_text()


def found_forms(haystack: bytes | str, value: str) -> set[str]:
    return {leak.form for leak in canary.find(haystack, [value])}


def test_each_is_unique_and_a_secret_fits_into_a_header():
    assert len({canary.make_secret() for _ in range(50)} | {canary.make_text() for _ in range(50)}) == 100
    assert SECRET.isascii()
    assert SECRET.isprintable()
    assert SECRET.startswith("sk-")


@pytest.mark.parametrize("value", [SECRET, TEXT], ids=["secret", "text"])
@pytest.mark.parametrize(
    ("form", "disguise"),
    [
        ("raw", lambda v: v),
        ("raw", lambda v: v.encode().upper()),
        ("hex", lambda v: v.encode().hex()),
        ("hex", lambda v: v.encode().hex().upper()),
        ("json", json.dumps),
        ("json", lambda v: json.dumps(v, ensure_ascii=False)),
        ("json in json", lambda v: json.dumps(json.dumps({"a": v}))),
        ("percent", quote),
        ("repr", lambda v: repr(v.encode())),
        ("repr", repr),
        ("utf-16", lambda v: v.encode("utf-16")),
    ],
)
def test_every_form_is_found(value, form, disguise):
    hidden = disguise(value)
    haystack = b"before " + (hidden if isinstance(hidden, bytes) else hidden.encode()) + b" after"
    assert form in found_forms(haystack, value)
    with pytest.raises(AssertionError, match="the log"):
        canary.assert_absent(haystack, value, where="the log")


@pytest.mark.parametrize("value", [SECRET, TEXT, "12345678", "123456789"], ids=["secret", "text", "8", "9"])
@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_found_wherever_in_it_the_secret_stands(value, before, after, encode):
    haystack = encode(b"\xfe" * before + value.encode() + b"\xfd" * after)
    assert found_forms(haystack, value) == {"base64"}


def test_others_are_not_found():
    haystack = json.dumps([canary.make_secret(), canary.make_text()]) + "\udc80"
    canary.assert_absent(haystack, SECRET, TEXT)
    with pytest.raises(ValueError, match="nothing to look for"):
        canary.assert_absent(haystack)


def test_files_are_searched_by_name_and_content(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.bin").write_bytes(b"\xff\x00 harmless")
    assert canary.assert_absent_from_files(tmp_path, SECRET) == 1
    (tmp_path / "deep" / "b.log").write_bytes(b"\xff" + SECRET.encode())
    with pytest.raises(AssertionError, match=r"b\.log"):
        canary.assert_absent_from_files(tmp_path, SECRET)
    with pytest.raises(AssertionError, match=r"b\.log"):
        canary.assert_absent_from_files(tmp_path / "deep" / "b.log", SECRET)


def test_a_secret_in_redis_is_found(redis_server: RedisServer):
    redis_server.command("HSET", "h", "field", b"x" * 5000 + SECRET.encode())
    dump = redis_server.dump()
    assert found_forms(b"\n".join([*dump, *dump.values()]), SECRET) >= {"raw"}
