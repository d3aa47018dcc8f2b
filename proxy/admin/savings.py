"""The money that hits have saved: each model's tokens at its own price, and the tokens that have no known price."""

from collections.abc import Mapping
from typing import Any

from proxy.vendors.prices import CNY_PER_1K_TOKENS, CURRENCY

BASIS = (
    "tokens saved of each model at its list price in China (Beijing); an estimate. Tokens of models whose price is not"
    " known are counted, and add nothing to the amount"
)

_DECIMALS = 12
"""A single token's price has fewer; more would show how floats are stored."""


def saved(tokens: Mapping[str, int]) -> dict[str, Any]:
    """The document for *tokens* saved by model; a model without a price has ``None`` for price and amount."""
    models = {model: _of_model(count, CNY_PER_1K_TOKENS.get(model)) for model, count in tokens.items()}
    priced = [entry["amount"] for entry in models.values() if entry["amount"] is not None]
    return {
        "amount": round(sum(priced), _DECIMALS),
        "currency": CURRENCY,
        "unknown_price_tokens": sum(entry["tokens"] for entry in models.values() if entry["amount"] is None),
        "models": models,
        "basis": BASIS,
    }


def _of_model(tokens: int, price: float | None) -> dict[str, Any]:
    amount = None if price is None else round(tokens * price / 1000, _DECIMALS)
    return {"tokens": tokens, "price_per_1k": price, "amount": amount}
