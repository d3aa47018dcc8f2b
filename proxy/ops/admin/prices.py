"""
What the vendor charges, for an estimate of what hits have saved. A list price, not anybody's bill.

Source: the vendor's public model and price pages for text embedding, dated 2024 to September 2026. CNY per 1,000
tokens, China (Beijing), ordinary calls; the batch interface costs half.
"""

CURRENCY = "CNY"

CNY_PER_1K_TOKENS: dict[str, float] = {
    "text-embedding-v4": 0.0005,
    "text-embedding-v3": 0.0005,
    "text-embedding-v2": 0.0007,
    "text-embedding-v1": 0.0007,
    "text-embedding-async-v2": 0.0007,
    "text-embedding-async-v1": 0.0007,
}
"""By model. Models whose price in CNY the vendor does not publish are left out."""

_LOWEST = {"embedding": min(CNY_PER_1K_TOKENS.values())}

BASIS = "tokens saved at the lowest list price of the operation's models; an estimate that is rather too low"


def saved(operation: str, tokens: float) -> float:
    """
    What *tokens* of *operation* would have cost at least.

    Tokens are counted per operation and not per model, so the cheapest model's price is taken.
    """
    return tokens / 1000 * _LOWEST.get(operation, 0.0)
