"""Errors of ours in the vendor's shape, so that its SDKs show them as they show the vendor's own."""

import orjson

_OPENAI_STYLE = ("/compatible-mode/", "/compatible-api/")
_DASHVECTOR = ("/v1/collections", "/service_version")
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
    if path.startswith(_DASHVECTOR):
        return orjson.dumps({"request_id": request_id, "code": _UNKNOWN, "message": f"{code}: {message}"})
    return orjson.dumps({"code": code, "message": message, "request_id": request_id})
