"""Errors of ours in the vendor's shape, so that its SDKs show them as they show the vendor's own."""

import orjson

_OPENAI_STYLE = ("/compatible-mode/", "/compatible-api/")


def error_body(path: str, code: str, message: str, request_id: str) -> bytes:
    """The JSON body for an error of ours on *path*: native (``code``, ``message``) or the form of OpenAI's API."""
    if path.startswith(_OPENAI_STYLE):
        error = {"message": message, "type": code, "param": None, "code": code}
        return orjson.dumps({"error": error, "request_id": request_id})
    return orjson.dumps({"code": code, "message": message, "request_id": request_id})
