"""Errors of ours in the vendor's shape, so that its SDKs show them as they show the vendor's own."""

import orjson

from proxy.core.request import HeaderLines
from proxy.vendors.dashvector import common as dashvector

_OPENAI_STYLE = ("/compatible-mode/", "/compatible-api/")
_UNKNOWN = -999
"""DashVector's codes are numbers; this one says that none of the others fits."""


def error_body(path: str, code: str, message: str, request_id: str) -> bytes:
    """
    The JSON body for an error of ours on *path*: DashScope's native form, the form of OpenAI's API, or DashVector's.

    DashVector's Python SDK reads no body unless the HTTP status is 200 and shows the status instead; other clients do.
    """
    if path.startswith(_OPENAI_STYLE):
        error = {"message": message, "type": code, "param": None, "code": code}
        return orjson.dumps({"error": error, "request_id": request_id})
    if dashvector.is_path(path):
        return orjson.dumps({"request_id": request_id, "code": _UNKNOWN, "message": f"{code}: {message}"})
    return orjson.dumps({"code": code, "message": message, "request_id": request_id})


def error_lines(request_id: str) -> HeaderLines:
    """
    The trailing metadata for an error of ours over gRPC.

    Without ``extra-code`` DashVector's Python SDK shows a text of its own in place of our details.
    """
    return ((b"request-id", request_id.encode("ascii")), (b"extra-code", str(_UNKNOWN).encode("ascii")))
