"""Every error of the vendor reaches the SDKs as the vendor sent it, and none is ever kept."""

from collections.abc import Callable
from typing import Any, get_args

import pytest

from tests.sdk.asking import Ask, Dashscope2, OpenAi, dashscope1, fresh
from tests.sdk.rig import Rig, assert_hit
from tests.vendor_sim import Fault
from tests.vendor_sim.errors import ERRORS
from tests.vendor_sim.faults import Wrong

SDKS = ["dashscope1", "openai", "dashscope2"]
# The other kinds break the connection, or are about streams.
WRONGS = sorted(set(get_args(Wrong)) - {"code_in_200", "truncated_body", "disconnect", "error_in_stream"})


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def embed(sdk: str, openai_sync: OpenAi, dashscope2: Dashscope2) -> Ask:
    return {"dashscope1": dashscope1, "openai": openai_sync, "dashscope2": dashscope2.embed}[sdk]


def assert_well_again(rig: Rig, embed: Ask, texts: list[str]) -> None:
    """The vendor is healthy again, and nothing that it said before is in the way; then the answer is kept."""
    rig.sim.reset()
    told = rig.through(lambda url: embed(url, texts), calls=1)
    assert told.value == embed(rig.sim.url, texts).value
    assert_hit(rig.through(lambda url: embed(url, texts), calls=0), len(texts))


def status_of(told: Any, sdk: str) -> Any:
    return told.value["error"]["status_code"] if sdk == "dashscope2" else told.value[1]


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_s3_an_error_is_equal_and_not_kept(rig: Rig, sdk: str, embed: Ask, name: str) -> None:
    """With nothing known, and with one text of two known: then it is the answer to the whole."""
    known, new = fresh(2)
    embed(rig.proxy.http_url, [known])
    rig.sim.add_faults(Fault(error=name, text=new))
    for texts in ([new], [known, new], [new, known, new]):
        told = rig.refused(lambda url, texts=texts: embed(url, texts), is_partial=texts != [new])
        assert status_of(told, sdk) == ERRORS[name].status
        assert ERRORS[name].message in repr(told.value) or sdk == "openai"
    # What was known still is, but for a credential that was refused: that is asked for with it.
    assert rig.through(lambda url: embed(url, [known]), calls=ERRORS[name].status in (401, 403)).value
    assert_well_again(rig, embed, [known, new])


def test_s3_a_code_inside_status_200_is_an_error_and_not_kept(rig: Rig, embed: Ask) -> None:
    known, new = fresh(2)
    embed(rig.proxy.http_url, [known])
    rig.sim.add_faults(Fault(wrong="code_in_200", text=new))
    for texts in ([new], [known, new]):
        told = rig.refused(lambda url, texts=texts: embed(url, texts), is_partial=texts != [new])
        assert "'embedding'" not in repr(told.value)  # the 1.x SDK then returns no output; the others raise
    assert_well_again(rig, embed, [known, new])


@pytest.mark.parametrize("wrong", WRONGS)
def test_s3_a_wrong_answer_is_passed_on_and_not_kept(rig: Rig, embed: Ask, wrong: Any) -> None:
    texts = fresh(3)
    rig.sim.add_faults(Fault(wrong=wrong, text=texts[0]))
    rig.refused(lambda url: embed(url, texts))
    assert_well_again(rig, embed, texts)


@pytest.mark.parametrize("wrong", WRONGS)
def test_s3_a_wrong_answer_for_the_missing_texts_is_not_joined_with_known_ones(
    rig: Rig, embed: Ask, wrong: Any
) -> None:
    """The vendor is asked for the whole then, and its answer to that is passed on."""
    known, new = fresh(2), fresh(2)
    embed(rig.proxy.http_url, known)
    rig.sim.add_faults(Fault(wrong=wrong, text=new[0]))
    direct = embed(rig.sim.url, [*known, *new])
    told = rig.through(lambda url: embed(url, [*known, *new]), calls=2)
    assert told.said == direct.said
    if told.headers is not None:
        assert told.header("cache-status").startswith("dashcache; fwd=miss; fwd-status=200; detail=")
    assert_well_again(rig, embed, [*known, *new])


@pytest.mark.parametrize("wrong", ["truncated_body", "disconnect"])
def test_s3_an_upstream_that_breaks_off_is_an_error_and_nothing_is_kept(
    rig: Rig, sdk: str, embed: Ask, wrong: Any
) -> None:
    known, new = fresh(2)
    embed(rig.proxy.http_url, [known])
    rig.sim.add_faults(Fault(wrong=wrong, text=new))
    for texts in ([new], [known, new]):
        told = embed(rig.proxy.http_url, texts)
        assert status_of(told, sdk) == 502
        assert told.header("x-dashcache-error").startswith("Upstream")
    assert_well_again(rig, embed, [known, new])


# What is asked, made from ten texts that are known; then the options on the native and on the compatible path.
# None: cannot be said there.
BAD_INPUT: dict[str, tuple[Callable[[list[str]], Any], dict[str, Any] | None, dict[str, Any] | None]] = {
    "over the cap": (lambda _: fresh(11), {}, {}),
    "over the cap, ten of them known": (lambda known: [*known, "one more"], {}, {}),
    "over the cap by a duplicate": (lambda known: [*known, known[0]], {}, {}),
    "an empty text": (lambda _: [""], {}, {}),
    "an empty text among known ones": (lambda known: [*known[:3], ""], {}, {}),
    "a text too long": (lambda _: ["词" * 8_193], {}, {}),
    "a text too long among known ones": (lambda known: [known[0], "词" * 8_193], {}, {}),
    "not a text": (lambda _: [3], {}, {}),
    "not a text among known ones": (lambda known: [known[0], 3], {}, {}),
    "null among known ones": (lambda known: [known[0], None], {}, {}),
    "tokens": (lambda _: [[1, 2, 3]], {}, {}),
    "an unknown model": (lambda known: known, {"model": "no-such-model"}, {"model": "no-such-model"}),
    "a model for batches": (
        lambda known: known,
        {"model": "text-embedding-async-v2"},
        {"model": "text-embedding-async-v2"},
    ),
    "an impossible dimension": (lambda known: known, {"dimension": 3}, {"dimensions": 3}),
    "a dimension that is no number": (lambda known: known, {"dimension": [64]}, {"dimensions": [64]}),
    "an unknown text type": (lambda known: known, {"text_type": "poem"}, None),
    "an unknown output type": (lambda known: known, {"output_type": "loud"}, None),
    "an instruct that is no text": (lambda known: known, {"instruct": 3}, None),
    "an unknown encoding": (lambda known: known, None, {"encoding_format": "hex"}),
    "a wrong key": (lambda known: known, {"api_key": "sk-wrong"}, {"api_key": "sk-wrong"}),
}


@pytest.mark.parametrize(
    ("sdk", "name"),
    [
        (sdk, name)
        for sdk in SDKS
        for name, (_, native, compatible) in BAD_INPUT.items()
        if (compatible if sdk == "openai" else native) is not None
    ],
)
def test_bad_input_gets_the_vendors_own_words(rig: Rig, sdk: str, embed: Ask, name: str) -> None:
    make, native, compatible = BAD_INPUT[name]
    options = compatible if sdk == "openai" else native
    known = fresh(10)
    embed(rig.proxy.http_url, known)
    texts = make(known)
    told = rig.refused(lambda url: embed(url, texts, **dict(options or {})), is_partial=True)
    assert status_of(told, sdk) >= 400
    if (
        status_of(told, sdk) == 403
    ):  # the key itself was refused, as far as anybody knows: the vendor is asked once more
        rig.through(lambda url: embed(url, known), calls=1)
    assert_hit(rig.through(lambda url: embed(url, known), calls=0), 10)


@pytest.mark.parametrize("sdk", ["dashscope1", "openai"])
def test_an_empty_batch_gets_the_vendors_own_words(rig: Rig, sdk: str, embed: Ask) -> None:
    """The 2.x client refuses it by itself."""
    told = rig.refused(lambda url: embed(url, []))
    assert status_of(told, sdk) == 400
