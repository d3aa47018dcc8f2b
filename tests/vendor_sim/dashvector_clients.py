"""
The vendor's own client against an address with a port.

The SDK refuses ports in endpoints and then dials 443 or 80. Both of its transports build what they dial from the
endpoint text alone (``http://`` + endpoint, and the channel's target), so the one seam is the pattern that endpoints
must match: `sdk_endpoints` widens it and asks for plain text. Nothing else of the SDK is changed.

Its HTTP transport runs on one event loop per process, taken from whatever thread comes first and never ended; here it
gets a loop on a thread that ends with the context.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from tests.vendor_sim.dashvector_package import HTTPHandler, dashvector, validator
from tests.vendor_sim.dashvector_recorder import Protocol
from tests.vendor_sim.runner import LoopThread

_ANY_ENDPOINT: Final = r"^[\w.:-]+$"
_PROTOCOLS: Final = {"grpc": dashvector.DashVectorProtocol.GRPC, "http": dashvector.DashVectorProtocol.HTTP}

TOKEN: Final = "sk-dv-0123456789abcdef"


@contextmanager
def sdk_endpoints(*, insecure: bool = True) -> Iterator[None]:
    """Inside, `dashvector.Client` takes endpoints like 127.0.0.1:8091 and speaks plain text unless told not to."""
    environment = {"DASHVECTOR_INSECURE_MODE": str(insecure), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    thread = LoopThread("dashvector-sdk")
    with (
        mock.patch.object(validator, "ENDPOINT_PATTERN", _ANY_ENDPOINT),
        mock.patch.object(HTTPHandler._HTTPAsyncClient, "_aio_ev_loop", thread.loop),
        mock.patch.dict(os.environ, environment),
    ):
        try:
            yield
        finally:
            thread.close()


@contextmanager
def sdk_client(protocol: Protocol, address: str, token: str = TOKEN, **options: Any) -> Iterator[Any]:
    """A client of *protocol* for *address* (host:port, or a URL), closed afterwards; only inside `sdk_endpoints`."""
    endpoint = address.partition("://")[2] or address
    client = dashvector.Client(api_key=token, endpoint=endpoint, protocol=_PROTOCOLS[protocol], **options)
    try:
        yield client
    finally:
        client.close()
