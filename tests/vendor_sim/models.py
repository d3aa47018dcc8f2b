"""The vendor's models as its pages list them: dimensions, caps, kinds of number. Tables only, no behaviour."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A synchronous text embedding model. The first of *dimensions* is the default."""

    name: str
    dimensions: tuple[int, ...]
    max_texts: int
    max_tokens: int
    # v1 and v2 send numbers that no float32 holds, and never an exponent; the others send float32 values.
    is_float64: bool = False
    has_dimension_choice: bool = True
    has_sparse: bool = False
    has_instruct: bool = False


@dataclass(frozen=True, slots=True)
class MultimodalModel:
    """A multimodal embedding model; *family* decides the usage fields and what an item's type is called."""

    name: str
    dimensions: tuple[int, ...]
    family: str


@dataclass(frozen=True, slots=True)
class RerankModel:
    """A rerank model; only some are offered on the compatible path."""

    name: str
    max_documents: int
    is_compatible: bool = False


_QWEN37 = (1024, 2560, 2048, 1536, 768, 512, 256)
_VISION = (1152, 1024, 768, 512, 256, 128, 64)

EMBEDDING_MODELS: Final = {
    model.name: model
    for model in (
        EmbeddingModel(
            "text-embedding-v4",
            (1024, 2048, 1536, 768, 512, 256, 128, 64),
            10,
            8_192,
            has_sparse=True,
            has_instruct=True,
        ),
        EmbeddingModel("text-embedding-v3", (1024, 768, 512, 256, 128, 64), 10, 8_192, has_sparse=True),
        EmbeddingModel("text-embedding-v2", (1536,), 25, 2_048, is_float64=True, has_dimension_choice=False),
        EmbeddingModel("text-embedding-v1", (1536,), 25, 2_048, is_float64=True, has_dimension_choice=False),
        EmbeddingModel("qwen3.7-text-embedding", _QWEN37, 20, 128_000, has_instruct=True),
        # The vendor does not publish the limits of flash; its bigger sister's stand in.
        EmbeddingModel("qwen3.7-text-embedding-flash", _QWEN37, 20, 128_000, has_instruct=True),
    )
}

ASYNC_MODELS: Final = frozenset({"text-embedding-async-v1", "text-embedding-async-v2"})

MULTIMODAL_MODELS: Final = {
    model.name: model
    for model in (
        MultimodalModel("qwen3-vl-embedding", (2560, 2048, 1536, 1024, 768, 512, 256), "qwen3-vl"),
        MultimodalModel("qwen2.5-vl-embedding", (1024, 2048, 768, 512), "qwen2.5-vl"),
        MultimodalModel("tongyi-embedding-vision-plus", _VISION, "tongyi"),
        MultimodalModel("tongyi-embedding-vision-flash", (768,), "tongyi"),
        MultimodalModel("tongyi-embedding-vision-plus-2026-03-06", _VISION, "tongyi"),
        MultimodalModel("tongyi-embedding-vision-flash-2026-03-06", (768, 512, 256, 128, 64), "tongyi"),
        MultimodalModel("multimodal-embedding-v1", (1024,), "v1"),
    )
}

RERANK_MODELS: Final = {
    model.name: model
    for model in (
        RerankModel("qwen3-rerank", 500, is_compatible=True),
        RerankModel("gte-rerank-v2", 500),
        RerankModel("qwen3-vl-rerank", 100),
    )
}

GENERATION_MODELS: Final = ("qwen-plus", "qwen-turbo", "qwen-max", "qwen-vl-plus")

ALL_MODEL_NAMES: Final = (
    *EMBEDDING_MODELS,
    *sorted(ASYNC_MODELS),
    *MULTIMODAL_MODELS,
    *RERANK_MODELS,
    *GENERATION_MODELS,
)
