"""Keys and tags: nothing collides, nothing is shared between purposes or secrets (S10)."""

import hashlib
import itertools
import random

import pytest

from proxy.core import key as keys
from proxy.core.key import Secret, authentication_tag, common_digest, item_key, prefixed

SECRET = Secret.derive(b"one secret")


def pairs_of_part_lists(seed: int, count: int):
    """Part lists that differ, made to be confused: boundaries shifted, parts empty or absent, types spelled alike."""
    chance = random.Random(seed)
    values = (b"", b"null", b'""', b"0", b"1", b"1.0", b'"1"', b"true", b"[]", b"{}", b"\x00", b"\x00" * 8, b"a", b"ab")
    pieces = (*values, (1).to_bytes(8, "little"), prefixed([b"a"]), prefixed([b""]), b"dashcache")
    for number in range(count):
        parts = [pieces[chance.randrange(len(pieces))] for _ in range(chance.randrange(1, 5))]
        at = chance.randrange(len(parts))
        part, kind = parts[at], number % 6
        cut = chance.randrange(len(part) + 1)
        if kind == 0:  # one part becomes two
            other = [*parts[:at], part[:cut], part[cut:], *parts[at + 1 :]]
        elif kind == 1:  # a boundary moves by one byte
            other = [*parts[:at], part + b"x", *parts[at + 1 :]]
            parts = [*parts[:at], part, b"x", *parts[at + 1 :]] if cut else [*parts, b"x"]
        elif kind == 2:  # absent or empty
            other = parts[:at] + parts[at + 1 :]
        elif kind == 3:  # one part that looks like the rest with its lengths
            other = [*parts[:at], prefixed(parts[at:])]
        elif kind == 4:  # another type
            other = [*parts[:at], values[chance.randrange(len(values))], *parts[at + 1 :]]
        else:  # the same parts in another order
            other = parts[at:] + parts[:at]
        if other != parts:
            yield parts, other


@pytest.mark.parametrize("count", [50_000, pytest.param(1_350_000, marks=pytest.mark.slow)])
def test_s10_keys_do_not_collide(count):
    """
    Pairs of lists of parts, made to be confused: none gives the same material, so none gives the same key.

    The hash is BLAKE2b-256 of the material; it is run on a part of the pairs only, as its own collisions are not ours.
    """
    compared = 0
    digests: dict[bytes, tuple[bytes, ...]] = {}
    for parts, other in pairs_of_part_lists(seed=2026, count=count):
        assert prefixed(parts) != prefixed(other), (parts, other)
        compared += 1
        if compared % 16 == 0:
            for each in (parts, other):
                known = digests.setdefault(common_digest(SECRET, each), tuple(each))
                assert known == tuple(each)
    assert compared >= count * 0.74


def test_prefixed_can_be_read_back_for_all_short_lists():
    """Exhaustive over short lists of short parts: no two lists give the same bytes."""
    parts = (b"", b"\x00", b"\x01", b"a", b"\x01\x00\x00\x00\x00\x00\x00\x00")
    seen = {}
    for length in range(6):
        for chosen in itertools.product(parts, repeat=length):
            assert seen.setdefault(prefixed(chosen), chosen) == chosen


def test_every_input_changes_the_item_key():
    other = Secret.derive(b"another secret")
    common = common_digest(SECRET, [b"upstream", b"embedding"])
    variants = {
        item_key(SECRET, common, b"text"),
        item_key(other, common, b"text"),
        item_key(SECRET, common, b"text "),
        item_key(SECRET, common, b""),
        item_key(SECRET, common_digest(other, [b"upstream", b"embedding"]), b"text"),
        item_key(SECRET, common_digest(SECRET, [b"upstream", b"embedding", b""]), b"text"),
        item_key(SECRET, common_digest(SECRET, [b"upstreamembedding"]), b"text"),
        common,
    }
    assert len(variants) == 8
    assert all(len(variant) == 32 for variant in variants)


def test_the_version_is_part_of_every_key(monkeypatch):
    before = common_digest(SECRET, [b"x"])
    monkeypatch.setattr(keys, "KEY_VERSION", keys.KEY_VERSION + 1)
    assert common_digest(SECRET, [b"x"]) != before


def test_keys_and_tags_come_from_different_halves_of_the_secret():
    assert SECRET.identity != SECRET.entry
    half_other = Secret(SECRET.identity, b"\x01" * 64)
    assert item_key(half_other, b"c", b"i") == item_key(SECRET, b"c", b"i")
    assert authentication_tag(half_other, b"k", b"s") != authentication_tag(SECRET, b"k", b"s")


def test_the_tag_binds_value_to_key_wherever_the_boundary_stands():
    tags = {authentication_tag(SECRET, key, value) for key, value in [(b"k", b"ab"), (b"ka", b"b"), (b"", b"kab")]}
    assert len(tags) == 3


@pytest.mark.parametrize("secret", [b"", b"x", b"x" * 64, b"x" * 65, b"x" * 10_000])
def test_secrets_of_any_length_serve(secret):
    assert len(item_key(Secret.derive(secret), b"c", b"i")) == 32


def test_the_secret_does_not_show_itself():
    shown = repr(SECRET) + str(SECRET)
    assert SECRET.identity.hex() not in shown
    assert repr(SECRET.identity) not in shown
    assert "identity" not in shown


def test_a_guess_cannot_be_tested_without_the_secret():
    """The key is no plain hash of the material."""
    material = prefixed((b"c", b"text"))
    assert item_key(SECRET, b"c", b"text") != hashlib.blake2b(material, digest_size=32, person=b"item").digest()
