"""Rerank, native and compatible. A score depends on the whole request, so no part of an answer can be used again."""

from typing import Any

from tests.vendor_sim.errors import invalid_value, refuse
from tests.vendor_sim.exchange import Answer, Call, json_answer
from tests.vendor_sim.models import RERANK_MODELS
from tests.vendor_sim.vectors import rerank_scores, token_count


async def native(call: Call) -> Answer:
    """The native path: query and documents in ``input``, the rest in ``parameters``."""
    if call.is_enabled("X-DashScope-Async"):
        raise refuse("access_denied")
    asked = {**call.parameters, **call.input}
    results = [_native_result(result) for result in _ranked(call, asked)]
    return json_answer({"output": {"results": results}, "usage": _usage(asked), "request_id": call.request_id})


async def compatible(call: Call) -> Answer:
    """The OpenAI-style path: a flat body, and only the models that are offered there."""
    if call.model in RERANK_MODELS and not RERANK_MODELS[call.model].is_compatible:
        raise refuse("model_not_supported")
    results = _ranked(call, call.body)
    return json_answer(
        {
            "id": call.request_id,
            "object": "list",
            "model": call.model,
            "results": results,
            "usage": _usage(call.body),
        }
    )


def _native_result(result: dict[str, Any]) -> dict[str, Any]:
    document = {"document": result["document"]} if "document" in result else {}
    return {**document, "index": result["index"], "relevance_score": result["relevance_score"]}


def _ranked(call: Call, asked: dict[str, Any]) -> list[dict[str, Any]]:
    if call.model not in RERANK_MODELS:
        raise refuse("model_not_found")
    query, documents = asked.get("query"), asked.get("documents")
    if not query or not documents or not isinstance(documents, list):
        raise refuse("empty_input")
    maximum = RERANK_MODELS[call.model].max_documents
    if len(documents) > maximum:
        raise invalid_value(f"the number of documents should not be larger than {maximum}.: input.documents")
    top_n = asked.get("top_n") or len(documents)
    if not isinstance(top_n, int) or top_n < 1:
        raise invalid_value("top_n should be at least 1.: parameters.top_n")
    scores = rerank_scores(call.model, query, documents, asked.get("instruct"))
    order = sorted(range(len(documents)), key=lambda index: -scores[index])[:top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if asked.get("return_documents"):
        for result in results:
            document = documents[result["index"]]
            result["document"] = document if isinstance(document, dict) else {"text": document}
    return results


def _usage(asked: dict[str, Any]) -> dict[str, int]:
    documents = asked["documents"]
    per_query = token_count(str(asked["query"]))
    return {"total_tokens": per_query * len(documents) + sum(token_count(str(document)) for document in documents)}
