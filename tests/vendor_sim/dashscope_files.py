"""Uploads and what belongs to them: files of both paths, the temporary upload policy. Bodies are counted, not kept."""

import hashlib
import time
import uuid
from typing import Any

from aiohttp import BodyPartReader

from tests.vendor_sim.dashscope_tasks import page_of
from tests.vendor_sim.errors import refuse
from tests.vendor_sim.exchange import Answer, Call, json_answer
from tests.vendor_sim.stores import StoredFile

_CHUNK_BYTES = 256 * 1024


async def upload_native(call: Call) -> Answer:
    """Take files in the fields ``files``; beyond the vendor's own fields it tells each file's size and SHA-256."""
    files = await _receive(call)
    uploaded = [
        {"name": file.name, "file_id": file.file_id, "size": file.size, "sha256": file.sha256} for file in files
    ]
    return json_answer({"data": {"uploaded_files": uploaded, "failed_uploads": []}, "request_id": call.request_id})


async def upload_compatible(call: Call) -> Answer:
    """Take the one file in the field ``file``."""
    files = await _receive(call)
    if len(files) != 1:
        raise refuse("malformed_body")
    return json_answer(_compatible_view(files[0]))


async def list_native(call: Call) -> Answer:
    """One page of the files."""
    page, size = page_of(call)
    files = call.state.files.all()
    views = [_native_view(file) for file in files[(page - 1) * size : page * size]]
    data = {"total": len(files), "page_size": size, "page_no": page, "files": views}
    return json_answer({"data": data, "request_id": call.request_id})


async def list_compatible(call: Call) -> Answer:
    """All files."""
    return json_answer(
        {"object": "list", "has_more": False, "data": [_compatible_view(file) for file in call.state.files.all()]}
    )


async def get_native(call: Call) -> Answer:
    """One file's facts."""
    file = call.state.files.get(call.request.match_info["file_id"])
    return json_answer({"data": _native_view(file), "request_id": call.request_id})


async def get_compatible(call: Call) -> Answer:
    """One file's facts."""
    return json_answer(_compatible_view(call.state.files.get(call.request.match_info["file_id"])))


async def delete_native(call: Call) -> Answer:
    """Forget a file."""
    call.state.files.remove(call.request.match_info["file_id"])
    return json_answer({"request_id": call.request_id})


async def delete_compatible(call: Call) -> Answer:
    """Forget a file."""
    file_id = call.request.match_info["file_id"]
    call.state.files.remove(file_id)
    return json_answer({"object": "file", "deleted": True, "id": file_id})


async def upload_policy(call: Call) -> Answer:
    """A permission to upload to the object store; another one every time, and soon expired."""
    if call.request.query.get("action") != "getPolicy" or not call.request.query.get("model"):
        raise refuse("invalid_parameter", "action and model are required.")
    token = uuid.uuid4().hex
    data = {
        "policy": token,
        "signature": token[::-1],
        "upload_dir": f"dashscope-instant/{token[:8]}",
        "upload_host": "https://dashscope-file.oss-cn-beijing.aliyuncs.com",
        "expire_in_seconds": 300,
        "max_file_size_mb": 100,
        "capacity_limit_mb": 999_999_999,
        "oss_access_key_id": "LTAI0000",
        "x_oss_object_acl": "private",
        "x_oss_forbid_overwrite": "true",
    }
    return json_answer({"request_id": call.request_id, "data": data})


async def _receive(call: Call) -> list[StoredFile]:
    """Read the multipart body chunk by chunk; fields that are no files may name the purpose."""
    if not call.request.content_type.startswith("multipart/"):
        raise refuse("malformed_body")
    found: list[tuple[str, int, str]] = []
    purpose = ""
    try:
        async for part in await call.request.multipart():
            if not isinstance(part, BodyPartReader):
                raise refuse("malformed_body")
            if part.filename is None:
                value = await part.text()
                purpose = value if part.name == "purpose" else purpose
            else:
                found.append(await _measured(call, part))
    except ValueError:  # the boundary is missing, or not where it should be
        raise refuse("malformed_body") from None
    if not found:
        raise refuse("empty_input")
    return [call.state.files.add(name, size, digest, purpose) for name, size, digest in found]


async def _measured(call: Call, part: BodyPartReader) -> tuple[str, int, str]:
    digest, size = hashlib.sha256(), 0
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    call.record.body_size += size
    call.record.file_sha256.append(digest.hexdigest())
    return part.filename or "", size, digest.hexdigest()


def _native_view(file: StoredFile) -> dict[str, Any]:
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(file.created))
    return {
        "file_id": file.file_id,
        "name": file.name,
        "description": "",
        "size": file.size,
        "sha256": file.sha256,
        "gmt_create": created,
    }


def _compatible_view(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.file_id,
        "bytes": file.size,
        "created_at": file.created,
        "filename": file.name,
        "object": "file",
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        "sha256": file.sha256,
    }
