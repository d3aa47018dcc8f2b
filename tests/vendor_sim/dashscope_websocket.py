"""The WebSocket paths: tasks by JSON frames on ``inference``, a plain echo on ``realtime``. Binary frames come back."""

from typing import Any

from aiohttp import WSMsgType, web

from tests.vendor_sim.answers import compact
from tests.vendor_sim.exchange import Call, read_object

# In these modes everything to be processed comes with run-task; in the others finish-task ends the input.
_ONE_SHOT = {"none", "out"}


async def inference(call: Call) -> web.WebSocketResponse:
    """run-task, continue-task, finish-task; every input gets one result-generated."""
    socket = await _upgraded(call)
    task_id, mode = "", ""
    async for message in socket:
        if message.type == WSMsgType.BINARY:
            call.record.messages.append(message.data)
            await socket.send_bytes(message.data)
            continue
        if message.type != WSMsgType.TEXT:
            continue
        call.record.messages.append(message.data)
        frame = read_object(message.data.encode()) or {}
        header, payload = frame.get("header"), frame.get("payload")
        if not isinstance(header, dict) or header.get("action") not in ("run-task", "continue-task", "finish-task"):
            await _fail(socket, task_id)
            break
        action = header["action"]
        if action == "run-task":
            task_id, mode = str(header.get("task_id", "")), str(header.get("streaming", "none"))
            await _send(socket, "task-started", task_id, {})
        if action == "continue-task" or (action == "run-task" and mode in _ONE_SHOT):
            await _send(socket, "result-generated", task_id, _result(payload))
        if action == "finish-task" or (action == "run-task" and mode in _ONE_SHOT):
            await _send(socket, "task-finished", task_id, _result(payload))
    await socket.close()
    return socket


async def realtime(call: Call) -> web.WebSocketResponse:
    """Whatever comes in goes out."""
    socket = await _upgraded(call)
    async for message in socket:
        if message.type == WSMsgType.BINARY:
            call.record.messages.append(message.data)
            await socket.send_bytes(message.data)
        elif message.type == WSMsgType.TEXT:
            call.record.messages.append(message.data)
            await socket.send_str(message.data)
    return socket


async def _upgraded(call: Call) -> web.WebSocketResponse:
    # No limit on a message: audio comes in frames of any size.
    socket = web.WebSocketResponse(max_msg_size=0)
    socket.headers["x-request-id"] = call.request_id
    await socket.prepare(call.request)
    call.record.status = socket.status
    return socket


def _result(payload: Any) -> dict[str, Any]:
    asked = payload.get("input") if isinstance(payload, dict) else None
    return {"output": {"echo": asked}, "usage": {"total_tokens": 1}}


async def _send(socket: web.WebSocketResponse, event: str, task_id: str, payload: dict[str, Any]) -> None:
    header = {"task_id": task_id, "event": event, "attributes": {}}
    await socket.send_str(compact({"header": header, "payload": payload}).decode())


async def _fail(socket: web.WebSocketResponse, task_id: str) -> None:
    header = {
        "task_id": task_id,
        "event": "task-failed",
        "error_code": "InvalidParameter",
        "error_message": "Required header action is missing or unknown.",
        "attributes": {},
    }
    await socket.send_str(compact({"header": header, "payload": {}}).decode())
