"""Strict JSON: what is refused, and what survives a round trip."""

import json

import pytest

from proxy.core.jsontext import Ambiguous, Number, canonical, compact, parse, weight
from proxy.runtime.offload import LARGE_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"x":[{"deep":{"b":0,"b":0}}]}',
        '{"é":1,"\\u00e9":2}'.encode(),
    ],
)
def test_duplicate_members_are_ambiguous_however_they_are_spelled(body):
    with pytest.raises(Ambiguous):
        parse(body)


def test_names_that_differ_in_case_or_unicode_form_are_not_duplicates():
    body = '{"a":1,"A":2,"é":3,"e\u0301":4}'.encode()
    assert compact(parse(body)) == body


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity", b"-NaN", b"nan", b"None", b"True", b"undefined"])
@pytest.mark.parametrize("around", [b"%b", b"[%b]", b'{"a":%b}'])
def test_words_that_are_no_json_are_ambiguous(word, around):
    with pytest.raises(Ambiguous):
        parse(around % word)


@pytest.mark.parametrize("number", ["01", "+1", "1.", ".5", "1e", "0x1", "--1", "1_0", "٣", "1e+", "-"])
def test_numbers_outside_the_grammar_are_ambiguous(number):
    with pytest.raises(Ambiguous):
        parse(f"[{number}]".encode())


@pytest.mark.parametrize(
    "text",
    [r'"\ud800"', r'"\uDFFF"', r'"a\udc00b"', r'"\udc00\ud800"', r'"\ud83d"', r'{"\ud800":1}', r'[[{"x":"\uDbFf"}]]'],
)
def test_lone_surrogates_are_ambiguous_when_they_are_read(text):
    with pytest.raises(Ambiguous):
        parse(text.encode())


def test_surrogate_pairs_and_their_literal_escapes_are_fine():
    assert parse(rb'"\ud83d\ude00"') == "😀"
    assert parse(rb'"\\ud800"') == "\\ud800"


def test_surrogates_encoded_as_bytes_are_ambiguous():
    with pytest.raises(Ambiguous):
        parse(b'"\xed\xa0\x80"')


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "latin-1"])
def test_only_utf8_without_a_byte_order_mark_is_read(codec):
    body = ('{"text":"é"}' if codec == "latin-1" else '{"text":"衣服"}').encode(codec)
    with pytest.raises(Ambiguous):
        parse(body)


@pytest.mark.parametrize(
    "body", [b"", b" ", b"{", b"[1,]", b'{"a":1,}', b"{'a':1}", b"{}{}", b"{} x", b"//c\n1", b"\x00"]
)
def test_what_is_not_one_json_document_is_ambiguous(body):
    with pytest.raises(Ambiguous):
        parse(body)


@pytest.mark.parametrize("character", [0, 1, 9, 10, 13, 30, 31])
def test_raw_control_characters_in_strings_are_ambiguous(character):
    with pytest.raises(Ambiguous):
        parse(b'"a' + bytes([character]) + b'"')


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("levels", [65, 66, 200, 400, 900, 990, 5_000, 200_000])
def test_deep_documents_are_ambiguous_and_never_a_recursion_error(opening, levels):
    closing = "".join({"[": "]", "{": "}"}[sign] for sign in reversed(opening) if sign in "[{")
    with pytest.raises(Ambiguous):
        parse((opening * levels + "1" + closing * levels).encode())


def test_depth_up_to_the_limit_is_read_and_written():
    body = b"[" * 64 + b"1" + b"]" * 64
    assert compact(parse(body)) == canonical(parse(body)) == body


def test_writing_refuses_trees_that_parse_would_have_refused():
    tree = "end"
    for _ in range(100):
        tree = [tree]
    for write in (compact, canonical):
        with pytest.raises(Ambiguous):
            write(tree)
        with pytest.raises(Ambiguous):
            write("\ud800")


@pytest.mark.parametrize(
    "spelled",
    ["1", "1.0", "1e0", "1E0", "1e+0", "-0", "-0.0", "0.10", "1e400", "1" * 5_000, "0." + "3" * 400, "10", "1e1"],
)
def test_number_spelling_is_kept(spelled):
    tree = parse(b'{"n":%b}' % spelled.encode())
    assert isinstance(tree["n"], Number)
    assert compact(tree) == canonical(tree) == b'{"n":%b}' % spelled.encode()


def test_equal_numbers_in_different_spelling_stay_apart():
    spellings = [b"1", b"1.0", b"1e0", b"10e-1", b"1.00", b'"1"', b"true", b"[1]"]
    assert len({canonical(parse(spelling)) for spelling in spellings}) == len(spellings)


def test_canonical_ignores_order_blanks_and_escapes_only():
    plain = parse('{"b":[1,2],"a":"é/"}'.encode())
    pretty = parse(b'\n{ "a" : "\\u00e9\\/" ,\t"b":[ 1,\r\n2 ] } ')
    assert canonical(plain) == canonical(pretty) == '{"a":"é/","b":[1,2]}'.encode()


def test_compact_keeps_the_order_of_members():
    assert compact(parse(b'{ "b":1, "a":{"d":null, "c":false} }')) == b'{"b":1,"a":{"d":null,"c":false}}'


@pytest.mark.parametrize("empty", [b"{}", b"[]", b'""', b"null", b"true", b"false", b'{"":""}', b"[[],{}]"])
def test_empty_things_are_written_as_they_were(empty):
    assert compact(parse(empty)) == canonical(parse(empty)) == empty


def test_what_compact_writes_any_parser_reads_alike():
    body = '{"quote\\"":"\\u0000\\u001f\\u007f\\u2028 衣","n":[1.50,-2E+3,true,null]}'.encode()
    assert json.loads(compact(parse(body))) == json.loads(body)


@pytest.mark.parametrize(
    "filling", [b"1,", b"[],", b"{},", b'"a",', b'{"a":1},', b'"\\"",', b'"\\\\",', b'"\\\\\\"",', b'"[",', b"1 ,\n"]
)
def test_more_values_than_any_request_has_are_refused_before_they_are_read(filling):
    def document(values):
        return b'{"a":[' + filling * values + b'0],"b":"' + b"x" * 70_000 + b'"}'

    assert len(parse(document(10_000), most_members=20_000)["a"]) == 10_001
    with pytest.raises(Ambiguous, match="too many values"):
        parse(document(40_000), most_members=100_000)


@pytest.mark.parametrize(
    "members", [b'"%d":1,', b'"%d":{"a":1},', b'"%d":"text, with: commas",', b'"\\"%d:":[],'], ids=lambda m: m.decode()
)
def test_more_members_than_any_operation_has_are_refused_before_they_are_read(members):
    def document(count):
        return b"{" + b"".join(members % number for number in range(count)) + b'"last":"' + b"x" * 5_000 + b'"}'

    nested = 2 if b"{" in members else 1
    assert len(parse(document(4_000 // nested))) == 4_000 // nested + 1
    with pytest.raises(Ambiguous, match="too many values"):
        parse(document(5_000 // nested))
    with pytest.raises(Ambiguous, match="too many values"):
        parse(document(300), most_members=256)


def test_colons_in_texts_are_no_members():
    body = json.dumps({"input": ["10:30, 11:30 " * 3_000, "b"]}).encode()
    assert parse(body, most_members=256)["input"][1] == "b"


@pytest.mark.parametrize(
    ("body", "is_heavy"),
    [
        (b'{"input":"' + b"x" * 200_000 + b'"}', False),
        (b'{"vector":[' + b"0.123456," * 1_536 + b"1]}", False),
        (b'{"vector":[' + b"0.123456," * 20_000 + b"1]}", True),
        (b"{" + b'"a":1,' * 16_000 + b'"b":1}', True),
        (b"{" + b'"a":1,' * 6_300 + b'"b":1}', True),
        (b"{" + b'"a":1,' * 1_000 + b'"b":1}', True),
        (b"{" + b'"a":1,' * 400 + b'"b":1}', False),
        (b'{"input":"' + b"x" * 300_000 + b'"}', True),
    ],
)
def test_r13_what_is_heavy_is_told_by_values_and_not_by_bytes_alone(body, is_heavy):
    assert (weight(body) >= LARGE_BYTES) is is_heavy


@pytest.mark.parametrize("text", ["{[,:", 'said "no", then:', "\\", '\\"', ',"', '",'])
def test_what_stands_in_texts_counts_for_nothing(text):
    value = text * 50_000
    assert parse(json.dumps({"input": [value, "b"]}).encode())["input"] == [value, "b"]


def test_a_small_body_may_be_nothing_but_values():
    assert len(parse(b"[" + b"1," * 32_000 + b"1]")) == 32_001
