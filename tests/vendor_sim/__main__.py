"""
The simulator by hand: ``python -m tests.vendor_sim --port 8090 --dashvector-grpc-port 8091``.

DashScope and DashVector's HTTP share the first port, DashVector's gRPC has the second if one is chosen. Prints the URL
and on a second line the gRPC address, then runs until told to stop.
"""

import argparse
import asyncio
import signal

import uvloop

from tests.vendor_sim.app import add_dashscope_routes
from tests.vendor_sim.dashvector_settings import DashVectorSettings
from tests.vendor_sim.dashvector_sim import DashVectorSim
from tests.vendor_sim.settings import SimSettings
from tests.vendor_sim.sim import VendorSim


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.vendor_sim", description="A simulated DashScope and DashVector.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0 picks a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="up to so much more or less than the latency")
    parser.add_argument("--frame-delay-ms", type=float, default=0.0, help="between the frames of a stream")
    parser.add_argument("--capacity", type=int, help="calls at once; beyond: 429 Throttling")
    parser.add_argument("--rpm", type=int, help="calls per minute and model; beyond: 429 Throttling.RateQuota")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", action="append", help="an accepted key; may be repeated; without it all are")
    parser.add_argument("--base64", action="store_true", help="honour encoding_format base64")
    parser.add_argument("--shuffle", action="store_true", help="answer embeddings out of order")
    parser.add_argument("--dashvector-grpc-port", type=int, help="also serve DashVector's gRPC; 0 picks a free port")
    parser.add_argument("--dashvector-token", action="append", help="an accepted token; as with --key")
    parser.add_argument("--dashvector-visibility-ms", type=float, default=0.0, help="until reads see a write")
    parser.add_argument("--dashvector-creation-ms", type=float, default=0.0, help="until a new collection serves")
    parser.add_argument("--no-record", action="store_true", help="only count requests, for long load tests")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> SimSettings:
    return SimSettings(
        api_keys=frozenset(arguments.key) if arguments.key else None,
        latency_ms=arguments.latency_ms,
        jitter_ms=arguments.jitter_ms,
        frame_delay_ms=arguments.frame_delay_ms,
        capacity=arguments.capacity,
        rpm=arguments.rpm,
        seed=arguments.seed,
        honours_base64=arguments.base64,
        shuffles_embeddings=arguments.shuffle,
        records=not arguments.no_record,
    )


def _dashvector_settings(arguments: argparse.Namespace) -> DashVectorSettings:
    return DashVectorSettings(
        tokens=frozenset(arguments.dashvector_token) if arguments.dashvector_token else None,
        visibility_ms=arguments.dashvector_visibility_ms,
        creation_ms=arguments.dashvector_creation_ms,
        latency_ms=arguments.latency_ms,
        records=not arguments.no_record,
    )


async def _serve(arguments: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    dashvector = DashVectorSim(_dashvector_settings(arguments))
    sim = VendorSim(_settings(arguments), add_routes=dashvector.beside(add_dashscope_routes))
    try:
        await sim.start(arguments.port, arguments.host)
        print(sim.url, flush=True)
        if arguments.dashvector_grpc_port is not None:
            await dashvector.start_grpc(arguments.dashvector_grpc_port, arguments.host)
            print(dashvector.grpc_address, flush=True)
        await stopped.wait()
    finally:
        await dashvector.stop()
        await sim.stop()


if __name__ == "__main__":
    uvloop.run(_serve(_arguments()))
