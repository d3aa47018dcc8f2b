"""WebSocket frames as they pass: what goes on, what does not, and that it does not matter how they are cut."""

import random
import struct

import pytest

from proxy.server.http.frames import FrameError, Frames, goodbye

MASK = b"\x01\x02\x03\x04"


def frame(first: int, content: bytes, *, is_masked: bool = False) -> bytes:
    flag, size = 0x80 if is_masked else 0, len(content)
    if size < 126:
        length = bytes([flag | size])
    elif size < 65_536:
        length = bytes([flag | 126]) + struct.pack("!H", size)
    else:
        length = bytes([flag | 127]) + struct.pack("!Q", size)
    if not is_masked:
        return bytes([first]) + length + content
    return bytes([first]) + length + MASK + bytes(each ^ MASK[at % 4] for at, each in enumerate(content))


def through(data: bytes, cuts: list[int], **options: bool) -> tuple[bytes, bool]:
    """The bytes that went on, and whether all was sound."""
    frames = Frames(**{"is_masked": False, "is_extended": False} | options)
    passed, start = b"", 0
    for end in [*cuts, len(data)]:
        try:
            passed += frames.passing(data[start:end])
        except FrameError as error:
            return passed + error.args[0], False
        start = end
    return passed, True


MESSAGE = frame(0x01, b"be") + frame(0x89, b"ping") + frame(0x80, b"gin")
SOUND = {
    "empty": frame(0x82, b""),
    "pieces with a ping between": MESSAGE,
    "two lengths": frame(0x82, b"x" * 126) + frame(0x82, b"x" * 70_000),
    "goodbye": frame(0x88, struct.pack("!H", 1000) + "ü".encode()),
    "goodbye without a word": frame(0x88, b""),
}


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_what_is_sound_passes_byte_for_byte_however_it_is_cut(data: bytes, is_masked: bool) -> None:
    if is_masked and data is MESSAGE:
        data = b"".join(
            frame(first, text, is_masked=True) for first, text in ((0x01, b"be"), (0x89, b""), (0x80, b"g"))
        )
    elif is_masked:
        data = frame(data[0], data[2:] if len(data) < 126 else b"x" * 200, is_masked=True)
    chance = random.Random(1)
    for _ in range(50):
        cuts = sorted(chance.sample(range(len(data)), min(len(data), chance.randint(0, 8))))
        assert through(data, cuts, is_masked=is_masked) == (data, True)


UNSOUND = {
    "an opcode that does not exist": frame(0x83, b""),
    "a reserved bit": frame(0xC2, b""),
    "a mask where none belongs": frame(0x82, b"x", is_masked=True),
    "a continuation of nothing": frame(0x80, b"x"),
    "a message inside another": frame(0x01, b"x") + frame(0x81, b"y"),
    "a ping in pieces": frame(0x09, b"x"),
    "a long ping": frame(0x89, b"x" * 126),
    "a goodbye of one byte": frame(0x88, b"\x03"),
    "a code that is never sent": frame(0x88, struct.pack("!H", 1006)),
    "a reason that is no text": frame(0x88, struct.pack("!H", 1000) + b"\xff"),
    "a length of nobody's": b"\x82\x7f" + b"\xff" * 8,
}


@pytest.mark.parametrize("data", UNSOUND.values(), ids=UNSOUND)
def test_what_is_not_goes_no_further_and_what_came_before_does(data: bytes) -> None:
    before = frame(0x82, b"before")
    for cuts in ([], list(range(1, len(before) + len(data)))):
        passed, is_sound = through(before + data, cuts)
        assert not is_sound
        assert passed in (before, before + frame(0x01, b"x"))


def test_reserved_bits_are_the_business_of_an_extension() -> None:
    data = frame(0xC1, b"deflated")
    assert through(data, [], is_extended=True) == (data, True)


def test_of_an_unfinished_frame_everything_goes_on_at_once_and_nothing_fits_in_between() -> None:
    frames = Frames(is_masked=False, is_extended=False)
    begun = b"\x82\x7f" + struct.pack("!Q", 10**12) + b"x" * 1_000
    assert frames.passing(begun) == begun
    assert not frames.is_between
    assert frames.passing(b"y") == b"y"


def test_nothing_follows_a_goodbye() -> None:
    frames = Frames(is_masked=True, is_extended=False)
    said = goodbye(1001, is_masked=True)
    assert frames.passing(said + said) == said
    assert frames.said_goodbye
    assert frames.passing(frame(0x82, b"x", is_masked=True)) == b""
