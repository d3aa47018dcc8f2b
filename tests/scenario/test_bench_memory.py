"""The account of Redis' memory: nothing is missing in it, and what it says of one entry keeps the promise for all."""

import dashscope
import pytest

from benchmarks.seed_memory import LIMIT_BYTES, Item, Measured, Size, lines, measure
from tests.vendor_sim.dashvector_recorder import Protocol


@pytest.mark.parametrize("protocol", ["grpc", pytest.param("http", marks=pytest.mark.slow)])
def test_the_account_is_complete_and_entries_are_small_enough(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", dashscope.base_http_api_url)  # put back afterwards
    measured = measure(Size(embeddings=20, matches=60), protocol)
    items = {item.name: item for item in measured.items}
    counts = {name: item.count for name, item in items.items() if name != "descriptions"}
    # Tokens: of the endpoint and of two collections. The one write holds its collection.
    assert counts == {"embeddings": 20, "match results": 60, "tokens": 3, "holds": 1}
    embedding, match = items["embeddings"].bytes_used / 20, items["match results"].bytes_used / 60
    assert 4 * 1_024 * 0.8 < embedding < 4 * 1_024
    assert 1_500 * embedding + 1_000 * match + 500_000 < LIMIT_BYTES
    assert measured.answer_bytes > 0


def test_what_no_item_accounts_for_is_shown() -> None:
    measured = Measured("7.0", (Item("embeddings", 2, 100, 6_000, 7_000),), 0.0, 500, 300, 9_000_001, 8_000, 900)
    text = "\n".join(lines(measured, "grpc"))
    assert measured.rest == 9_000_001 - 7_000 - 500 - 300
    assert f"{measured.rest:,}" in text
    assert "fits into 9 MB: NO" in text
