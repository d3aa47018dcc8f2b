"""What every API call goes through before and after its operation: record, key, limits, faults, latency, reply."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from tests.vendor_sim.dashscope_embedding import texts_of
from tests.vendor_sim.dashscope_other import encrypted, unknown
from tests.vendor_sim.errors import VendorError, named_error
from tests.vendor_sim.exchange import Answer, Call, Operation, Outcome, SimState, Stream, read_object
from tests.vendor_sim.faults import Fault
from tests.vendor_sim.limits import check_key
from tests.vendor_sim.recorder import RecordedRequest
from tests.vendor_sim.reply import Replier, cut_off

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Turns operations into request handlers."""

    def __init__(self, state: SimState) -> None:
        self._state = state
        self._replier = Replier()

    def handler(self, operation: Operation, *, reads_body: bool = True, asks_texts: bool = False) -> Handler:
        """A handler for *operation*; uploads and WebSockets read for themselves, embeddings ask for texts."""

        async def handle(request: web.Request) -> web.StreamResponse:
            started = time.time()
            body = await request.read() if reads_body else b""
            call = self._received(request, body, asks_texts=asks_texts)
            recorder = self._state.recorder
            recorder.in_flight += 1
            recorder.peak_in_flight = max(recorder.peak_in_flight, recorder.in_flight)
            try:
                return await self._reply(call, operation, started)
            except (asyncio.CancelledError, ConnectionError):
                call.record.is_aborted = True
                raise
            finally:
                recorder.in_flight -= 1

        return handle

    def _received(self, request: web.Request, body: bytes, *, asks_texts: bool) -> Call:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        request_id = str(uuid.uuid4())
        is_compatible = request.path.startswith(("/compatible-mode/", "/compatible-api/"))
        payload = read_object(body)
        model = payload.get("model") if payload else None
        record = RecordedRequest(
            method=request.method,
            target=request.raw_path,
            path=request.path,
            headers=tuple(request.raw_headers),
            request_id=request_id,
            connection=(peer[0], peer[1]) if isinstance(peer, tuple) else None,
            body=body,
            body_size=len(body),
            model=model if isinstance(model, str) else None,
            texts=texts_of(payload, is_compatible=is_compatible) if asks_texts else (),
        )
        self._state.recorder.arrived(record, keep=self._state.settings.records)
        return Call(request, record, self._state, request_id, is_compatible, payload)

    async def _reply(self, call: Call, operation: Operation, started: float) -> web.StreamResponse:
        fault: Fault | None = None
        try:
            if operation is not unknown:
                check_key(self._state.settings, call.request.headers)
                self._state.limits.check(self._state.settings, call.record.model, self._state.recorder.in_flight)
                fault = self._state.faults.pick(call.record.path, call.record.model, call.record.texts)
            outcome = await self._outcome(call, operation, fault)
        except VendorError as error:
            outcome = _refusal(call, error, fault)
        if isinstance(outcome, web.WebSocketResponse):
            call.record.is_finished = True
            return outcome
        if call.wrong == "disconnect":
            cut_off(call)
            return web.Response(status=500)
        if isinstance(outcome, Stream):
            return await self._replier.stream(call, outcome, started)
        outcome.headers = fault.headers if fault else {}
        outcome.is_truncated = call.wrong == "truncated_body"
        return await self._replier.send(call, outcome, started)

    async def _outcome(self, call: Call, operation: Operation, fault: Fault | None) -> Outcome:
        await self._take_time(call, fault)
        if fault:
            call.wrong = fault.wrong
            if fault.error:
                raise named_error(fault.error)
            if call.wrong == "code_in_200":
                body = named_error("internal").spec.body(call.request_id, is_compatible=call.is_compatible)
                return Answer(body)
        if "X-DashScope-EncryptionKey" in call.request.headers and not call.is_compatible:
            return encrypted(call)
        return await operation(call)

    async def _take_time(self, call: Call, fault: Fault | None) -> None:
        if self._state.before_answer is not None:
            await self._state.before_answer(call.record)
        settings = self._state.settings
        jitter = self._state.random.uniform(-1.0, 1.0) * settings.jitter_ms
        await call.pause(settings.latency_ms + jitter + (fault.latency_ms if fault else 0.0))


def _refusal(call: Call, error: VendorError, fault: Fault | None) -> Answer:
    is_compatible = call.is_compatible if error.is_compatible is None else error.is_compatible
    status = fault.status if fault and fault.error and fault.status else error.spec.status
    return Answer(error.spec.body(call.request_id, is_compatible=is_compatible), status)
