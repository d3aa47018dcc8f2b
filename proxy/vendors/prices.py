"""
The vendor's prices, for an estimate of the money that hits have saved. A list price, not anybody's bill.

Source: the vendor's public model and price pages, dated 2024 to November 2026. CNY per 1,000 tokens, China (Beijing),
ordinary calls; the batch interface costs half, other regions cost a few percent more.
"""

CURRENCY = "CNY"

CNY_PER_1K_TOKENS: dict[str, float] = {
    "qwen3.7-text-embedding": 0.0005,
    "qwen3.7-text-embedding-flash": 0.000125,
    "text-embedding-v4": 0.0005,
    "text-embedding-v3": 0.0005,
    "text-embedding-v2": 0.0007,
    "text-embedding-v1": 0.0007,
    "text-embedding-async-v2": 0.0007,
    "text-embedding-async-v1": 0.0007,
}
"""By model. A model that is not here has no price: any that we took for it could be several times too high."""
