"""Batches: every vector at its place, every text paid for once, the same counters whenever the same batch is asked."""

from benchmarks.batches import play


async def test_batches_are_never_misplaced() -> None:
    result = await play(400, seed=3, texts=60)
    assert result.is_right, result
    assert all(result.states[state] >= 30 for state in ("hit", "partial", "miss")), result
    assert result.texts > 3_000
