"""Answers as they go onto the wire: the vendor's headers, gzip where accepted, always chunked, streams flushed."""

import time
import zlib
from collections.abc import Mapping
from contextlib import aclosing
from weakref import WeakSet

from aiohttp import HttpVersion11, web

from tests.vendor_sim.exchange import EVENT_STREAM_TYPE, JSON_TYPE, Answer, Call, Stream

# A gzip header and trailer around the deflate stream.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class Replier:
    """Sends answers; remembers which connections have got the load balancer's cookie."""

    def __init__(self) -> None:
        self._greeted: WeakSet[object] = WeakSet()

    async def send(self, call: Call, answer: Answer, started: float) -> web.StreamResponse:
        """Send a whole answer, or the half of it that a fault asks for."""
        response = self._response(call, answer.status, JSON_TYPE, answer.headers, started)
        body = answer.body
        if accepts_gzip(call.request.headers):
            response.headers["content-encoding"] = "gzip"
            packer = _packer(call)
            body = packer.compress(body) + packer.flush()
        if call.request.method == "HEAD":
            body = b""
        call.record.status = answer.status
        await response.prepare(call.request)
        if answer.is_truncated:
            await response.write(body[: max(1, len(body) // 2)])
            cut_off(call)
            return response
        if body:
            await response.write(body)
        await response.write_eof()
        call.record.is_finished = True
        return response

    async def stream(self, call: Call, stream: Stream, started: float) -> web.StreamResponse:
        """Send frames as they come, each flushed through the compressor."""
        response = self._response(call, 200, EVENT_STREAM_TYPE, {}, started)
        packer = _packer(call) if accepts_gzip(call.request.headers) else None
        if packer:
            response.headers["content-encoding"] = "gzip"
        call.record.status = 200
        await response.prepare(call.request)
        async with aclosing(stream.frames) as frames:
            async for frame in frames:
                await response.write(packer.compress(frame) + packer.flush(zlib.Z_SYNC_FLUSH) if packer else frame)
                if call.wrong == "truncated_body":
                    cut_off(call)
                    return response
        if packer:
            await response.write(packer.flush())
        await response.write_eof()
        call.record.is_finished = True
        return response

    def _response(
        self, call: Call, status: int, content_type: str, extra: Mapping[str, str], started: float
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        now = time.time()
        cost_ms = int((now - started) * 1000)
        response.headers.update(
            {
                "content-type": content_type,
                "x-request-id": call.request_id,
                "x-dashscope-call-gateway": "true",
                "x-dashscope-finished": "true",
                "x-dashscope-timeout": "180",
                "req-cost-time": str(cost_ms),
                "req-arrive-time": str(int(started * 1000)),
                "resp-start-time": str(int(now * 1000)),
                "x-envoy-upstream-service-time": str(cost_ms),
                "vary": "Accept-Encoding",
                "server": "istio-envoy",
            }
        )
        if self._wants_cookie(call):
            response.headers["set-cookie"] = f"acw_tc={call.request_id.replace('-', '')};path=/;HttpOnly;Max-Age=1800"
        response.headers.update(extra)
        if call.request.version >= HttpVersion11:
            response.enable_chunked_encoding()
        return response

    def _wants_cookie(self, call: Call) -> bool:
        mode = call.state.settings.affinity_cookie
        transport = call.request.transport
        if mode != "first" or transport is None:
            return mode == "always"
        is_new = transport not in self._greeted
        self._greeted.add(transport)
        return is_new


def _packer(call: Call) -> "zlib._Compress":
    return zlib.compressobj(call.state.settings.gzip_level, zlib.DEFLATED, _GZIP_WINDOW)


def cut_off(call: Call) -> None:
    """End the connection after what has been written so far."""
    if call.request.transport is not None:
        call.request.transport.close()


def accepts_gzip(headers: Mapping[str, str]) -> bool:
    """Whether Accept-Encoding allows gzip; no header means no."""
    qualities: dict[str, float] = {}
    for part in headers.get("Accept-Encoding", "").split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        try:
            qualities[name] = float(quality)
        except ValueError:
            qualities[name] = 0.0
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0
