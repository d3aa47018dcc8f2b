"""
What the vendor documents about its embedding models, as far as the cache needs it.

Source: the vendor's text-embedding page, read 2026-11. A cap that has since been raised costs hits on the larger
batches only; an operator can set the right one per model.
"""

BATCH_CAPS = {
    "text-embedding-v4": 10,
    "text-embedding-v3": 10,
    "text-embedding-v2": 25,
    "text-embedding-v1": 25,
    "qwen3.7-text-embedding": 20,
    "qwen3.7-text-embedding-flash": 20,
}
"""Texts per call. A larger batch is cut, or passed as it is, so that the vendor's own refusal reaches the client."""

LARGEST_CAP = max(BATCH_CAPS.values())
"""For models that are not listed."""
