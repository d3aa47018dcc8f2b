"""The simulator as an aiohttp application: which path leads to which operation."""

from collections.abc import Callable

from aiohttp import web

from tests.vendor_sim import (
    dashscope_embedding,
    dashscope_files,
    dashscope_generation,
    dashscope_multimodal,
    dashscope_other,
    dashscope_rerank,
    dashscope_tasks,
    dashscope_websocket,
)
from tests.vendor_sim.control import add_control_routes
from tests.vendor_sim.exchange import Operation, SimState
from tests.vendor_sim.gateway import Gateway

NATIVE_EMBEDDING = "/api/v1/services/embeddings/text-embedding/text-embedding"
COMPATIBLE_EMBEDDING = "/compatible-mode/v1/embeddings"

# Every body a client may send fits: data URIs reach tens of megabytes, and uploads are not held to this.
_MAX_BODY_BYTES = 1024**3

AddRoutes = Callable[[web.Application, Gateway], None]

_ROUTES: tuple[tuple[str, str, Operation], ...] = (
    (
        "POST",
        "/api/v1/services/embeddings/multimodal-embedding/multimodal-embedding",
        dashscope_multimodal.embedding,
    ),
    ("POST", "/api/v1/services/rerank/text-rerank/text-rerank", dashscope_rerank.native),
    ("POST", "/compatible-api/v1/reranks", dashscope_rerank.compatible),
    ("POST", "/api/v1/services/aigc/text-generation/generation", dashscope_generation.native),
    ("POST", "/api/v1/services/aigc/multimodal-generation/generation", dashscope_generation.native),
    ("POST", "/compatible-mode/v1/chat/completions", dashscope_generation.chat),
    ("GET", "/api/v1/tasks", dashscope_tasks.list_all),
    ("GET", "/api/v1/tasks/", dashscope_tasks.list_all),
    ("GET", "/api/v1/tasks/{task_id}", dashscope_tasks.fetch),
    ("POST", "/api/v1/tasks/{task_id}/cancel", dashscope_tasks.cancel),
    ("GET", "/api/v1/files", dashscope_files.list_native),
    ("GET", "/api/v1/files/{file_id}", dashscope_files.get_native),
    ("DELETE", "/api/v1/files/{file_id}", dashscope_files.delete_native),
    ("GET", "/compatible-mode/v1/files", dashscope_files.list_compatible),
    ("GET", "/compatible-mode/v1/files/{file_id}", dashscope_files.get_compatible),
    ("DELETE", "/compatible-mode/v1/files/{file_id}", dashscope_files.delete_compatible),
    ("GET", "/api/v1/uploads", dashscope_files.upload_policy),
    ("GET", "/api/v1/models", dashscope_other.models_native),
    ("GET", "/compatible-mode/v1/models", dashscope_other.models_compatible),
    ("GET", "/api/v1/public-keys/latest", dashscope_other.public_key),
)

_SELF_READING: tuple[tuple[str, str, Operation], ...] = (
    ("POST", "/api/v1/files", dashscope_files.upload_native),
    ("POST", "/compatible-mode/v1/files", dashscope_files.upload_compatible),
    ("GET", "/api-ws/v1/inference", dashscope_websocket.inference),
    ("GET", "/api-ws/v1/inference/", dashscope_websocket.inference),
    ("GET", "/api-ws/v1/realtime", dashscope_websocket.realtime),
)


def add_dashscope_routes(app: web.Application, gateway: Gateway) -> None:
    """Put DashScope's paths onto *app*."""
    app.router.add_post(NATIVE_EMBEDDING, gateway.handler(dashscope_embedding.native, asks_texts=True))
    app.router.add_post(COMPATIBLE_EMBEDDING, gateway.handler(dashscope_embedding.compatible, asks_texts=True))
    for method, path, operation in _ROUTES:
        app.router.add_route(method, path, gateway.handler(operation))
    for method, path, operation in _SELF_READING:
        app.router.add_route(method, path, gateway.handler(operation, reads_body=False))
    app.router.add_route("*", "/{path:.*}", gateway.handler(dashscope_other.unknown))


def build_app(state: SimState, add_routes: AddRoutes = add_dashscope_routes) -> web.Application:
    """The application on *state*; *add_routes* chooses the vendor."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    add_control_routes(app, state)
    add_routes(app, Gateway(state))
    return app
