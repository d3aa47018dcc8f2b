"""The endpoints under /_sim/, for whoever started the simulator as another process. Never recorded, never slow."""

import dataclasses
from typing import Any

import orjson
from aiohttp import web

from tests.vendor_sim.exchange import SimState
from tests.vendor_sim.faults import Fault
from tests.vendor_sim.settings import SimSettings


def add_control_routes(app: web.Application, state: SimState) -> None:
    """Put the endpoints onto *app*."""

    async def requests(_: web.Request) -> web.Response:
        recorder = state.recorder
        return _json(
            {
                "requests": [request.as_json() for request in recorder.requests],
                "texts_asked": dict(recorder.texts_asked),
                "texts_answered": dict(recorder.texts_answered),
            }
        )

    async def stats(_: web.Request) -> web.Response:
        return _json(state.recorder.stats())

    async def reset(_: web.Request) -> web.Response:
        state.reset()
        return _json({})

    async def faults(request: web.Request) -> web.Response:
        try:
            rules = [Fault.from_json(rule) for rule in orjson.loads(await request.read())]
        except (KeyError, TypeError, ValueError) as error:
            return _json({"error": repr(error)}, 400)
        applied = [rule.applied for rule in state.faults.rules]
        state.faults.clear()
        state.faults.add(*rules)
        return _json({"replaced": applied})

    async def settings(request: web.Request) -> web.Response:
        try:
            state.settings = changed_settings(state.settings, orjson.loads(await request.read()))
        except (TypeError, ValueError) as error:
            return _json({"error": repr(error)}, 400)
        return _json({})

    app.router.add_get("/_sim/requests", requests)
    app.router.add_get("/_sim/stats", stats)
    app.router.add_post("/_sim/reset", reset)
    app.router.add_put("/_sim/faults", faults)
    app.router.add_put("/_sim/settings", settings)


def changed_settings(settings: SimSettings, changes: dict[str, Any]) -> SimSettings:
    """*settings* with *changes* from JSON, whose lists become what the field had been."""
    kinds = {"api_keys": frozenset, "refused_keys": frozenset}
    values: dict[str, Any] = {
        name: kinds.get(name, tuple)(value) if isinstance(value, list) else value for name, value in changes.items()
    }
    return dataclasses.replace(settings, **values)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
