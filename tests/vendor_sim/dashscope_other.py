"""Small things of the vendor: model lists, the encryption key, answers to encrypted calls, paths nobody knows."""

import base64
import os
from typing import Any

from tests.vendor_sim.answers import total_tokens
from tests.vendor_sim.dashscope_tasks import page_of
from tests.vendor_sim.errors import VendorError, named_error
from tests.vendor_sim.exchange import Answer, Call, json_answer
from tests.vendor_sim.models import ALL_MODEL_NAMES

_CREATED = 1_700_000_000


async def models_native(call: Call) -> Answer:
    """One page of the models, or the one that is asked for by name."""
    page, size = page_of(call)
    wanted = call.request.query.get("model")
    names = [name for name in ALL_MODEL_NAMES if wanted in (None, "", name)]
    models: list[dict[str, Any]] = [
        {"model": name, "name": name, "provider": "qwen"} for name in names[(page - 1) * size : page * size]
    ]
    output = {"total": len(names), "page_no": page, "page_size": size, "models": models}
    return json_answer({"output": output, "request_id": call.request_id})


async def models_compatible(call: Call) -> Answer:
    """All models."""
    data = [{"id": name, "object": "model", "created": _CREATED, "owned_by": "system"} for name in ALL_MODEL_NAMES]
    return json_answer({"data": data, "object": "list"})


async def public_key(call: Call) -> Answer:
    """Something in the place of the key that encrypted calls need; nothing can be encrypted with it."""
    key = base64.b64encode(b"simulated public key").decode()
    return json_answer({"output": {"public_key_id": "1", "public_key": key}, "request_id": call.request_id})


async def unknown(call: Call) -> Answer:
    """A path nobody knows; the vendor's gateway answers natively wherever it lies."""
    raise VendorError(named_error("not_found").spec, is_compatible=False)


def encrypted(call: Call) -> Answer:
    """An answer only the asker could read: other bytes every time, as with a random key."""
    output = base64.b64encode(os.urandom(96)).decode()
    usage = {"total_tokens": total_tokens([call.record.body.decode("utf-8", "replace")])}
    return json_answer({"output": output, "usage": usage, "request_id": call.request_id})
