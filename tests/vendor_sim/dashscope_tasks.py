"""Asynchronous batch tasks: submission by the embedding path, polling, listing, cancelling. Never to be cached."""

from urllib.parse import quote

from tests.vendor_sim.errors import refuse
from tests.vendor_sim.exchange import Answer, Call, json_answer
from tests.vendor_sim.models import ASYNC_MODELS
from tests.vendor_sim.stores import Task


def submit_text_embedding(call: Call) -> Answer:
    """Take a batch job on; the other models refuse the async header."""
    if call.model not in ASYNC_MODELS:
        raise refuse("access_denied")
    url = call.input.get("url")
    if not isinstance(url, str) or not url:
        raise refuse("invalid_url")
    task = call.state.tasks.add(call.state.settings.task_states, model=call.model)
    return json_answer({"output": {"task_status": task.state, "task_id": task.task_id}, "request_id": call.request_id})


async def fetch(call: Call) -> Answer:
    """One poll, which moves the task on; an unknown id answers 200 all the same."""
    task_id = call.request.match_info["task_id"]
    task = call.state.tasks.poll(task_id)
    if task is None:
        return json_answer({"request_id": call.request_id, "output": {"task_id": task_id, "task_status": "UNKNOWN"}})
    output = {"task_id": task.task_id, "task_status": task.state, "submit_time": task.time(0)}
    if task.state != "PENDING":
        output["scheduled_time"] = task.time(25)
    if task.state in ("SUCCEEDED", "FAILED", "CANCELED"):
        output["end_time"] = task.time(5_578)
    if task.state == "FAILED":
        output |= {"code": "InvalidFile", "message": "Failed to parse the file."}
    body = {"request_id": call.request_id, "output": output}
    if task.state == "SUCCEEDED":
        output["url"] = _result_url(task)
        body["usage"] = {"total_tokens": 384}
    return json_answer(body)


async def cancel(call: Call) -> Answer:
    """Cancel a task that still waits."""
    call.state.tasks.cancel(call.request.match_info["task_id"])
    return json_answer({"request_id": call.request_id})


async def list_all(call: Call) -> Answer:
    """One page of the tasks, newest first."""
    page, size = page_of(call)
    tasks = call.state.tasks.newest_first()
    status = call.request.query.get("status")
    tasks = [task for task in tasks if status in (None, "", task.state)]
    data = [
        {
            "request_id": task.request_id,
            "task_id": task.task_id,
            "model_name": task.model,
            "status": task.state,
            "gmt_create": int(task.submitted.timestamp() * 1000),
        }
        for task in tasks[(page - 1) * size : page * size]
    ]
    return json_answer(
        {
            "total": len(tasks),
            "data": data,
            "total_page": -(-len(tasks) // size),
            "page_no": page,
            "page_size": size,
            "request_id": call.request_id,
        }
    )


def page_of(call: Call) -> tuple[int, int]:
    """Which page is wanted, and how long a page is; refuses what is no number."""
    try:
        page, size = (
            int(call.request.query.get(name) or default) for name, default in (("page_no", 1), ("page_size", 10))
        )
    except ValueError:
        raise refuse("invalid_parameter", "page_no and page_size should be numbers.") from None
    return max(1, page), max(1, size)


def _result_url(task: Task) -> str:
    expires = int(task.submitted.timestamp()) + 86_400
    signature = quote(f"{task.task_id[:8]}=", safe="")
    return (
        f"https://bucket.oss-cn-beijing.aliyuncs.com/{task.task_id[:8]}/result.txt.gz"
        f"?Expires={expires}&OSSAccessKeyId=LTAI0000&Signature={signature}"
    )
