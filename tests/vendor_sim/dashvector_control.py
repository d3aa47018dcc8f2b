"""The endpoints under /_sim/dashvector/, for whoever started the simulator as another process. Never recorded."""

import dataclasses
from typing import Any, Final

import orjson
from aiohttp import web

from tests.vendor_sim.dashvector_exchange import DashVectorState
from tests.vendor_sim.dashvector_faults import DashVectorFault
from tests.vendor_sim.dashvector_settings import DashVectorSettings

CONTROL: Final = "/_sim/dashvector"


def add_dashvector_control_routes(app: web.Application, state: DashVectorState) -> None:
    """Put the endpoints onto *app*."""

    async def requests(_: web.Request) -> web.Response:
        return _json([record.as_json() for record in state.recorder.requests])

    async def stats(_: web.Request) -> web.Response:
        return _json(state.recorder.stats())

    async def reset(_: web.Request) -> web.Response:
        state.reset()
        return _json({})

    async def faults(request: web.Request) -> web.Response:
        try:
            rules = [DashVectorFault.from_json(rule) for rule in orjson.loads(await request.read())]
        except (KeyError, TypeError, ValueError) as error:
            return _json({"error": repr(error)}, 400)
        applied = [rule.applied for rule in state.faults.rules]
        state.faults.clear()
        state.faults.add(*rules)
        return _json({"replaced": applied})

    async def settings(request: web.Request) -> web.Response:
        try:
            state.configure(changed_dashvector_settings(state.settings, orjson.loads(await request.read())))
        except (TypeError, ValueError) as error:
            return _json({"error": repr(error)}, 400)
        return _json({})

    app.router.add_get(f"{CONTROL}/requests", requests)
    app.router.add_get(f"{CONTROL}/stats", stats)
    app.router.add_post(f"{CONTROL}/reset", reset)
    app.router.add_put(f"{CONTROL}/faults", faults)
    app.router.add_put(f"{CONTROL}/settings", settings)
    _add_visibility_routes(app, state)


def _add_visibility_routes(app: web.Application, state: DashVectorState) -> None:
    async def hold(request: web.Request) -> web.Response:
        body = orjson.loads(await request.read() or b"{}")
        state.store.hold_visibility(body.get("collection"))
        return _json({})

    async def release(_: web.Request) -> web.Response:
        state.store.release()
        return _json({})

    app.router.add_post(f"{CONTROL}/hold", hold)
    app.router.add_post(f"{CONTROL}/release", release)


def changed_dashvector_settings(settings: DashVectorSettings, changes: dict[str, Any]) -> DashVectorSettings:
    """*settings* with *changes* from JSON, whose lists become what the field had been."""
    kinds = {"tokens": frozenset, "refused_tokens": frozenset}
    values: dict[str, Any] = {
        name: kinds.get(name, tuple)(value) if isinstance(value, list) else value for name, value in changes.items()
    }
    return dataclasses.replace(settings, **values)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
