"""How many connections a gRPC port takes, and how long it keeps those on which nothing happens."""

import asyncio
import contextlib

import grpc
import grpc.aio

from tests.support.http2 import GOAWAY
from tests.support.waiting import wait_until
from tests.unit.server.test_grpc_wire import client, front, until

SERVER_SETTINGS = b"\x00\x03\x00\x00\x01\x00"  # SETTINGS_MAX_CONCURRENT_STREAMS, as it is by default
GOING_AWAY = bytes([GOAWAY, 0, 0, 0, 0, 0])


async def test_connections_are_bounded_and_make_room_again() -> None:
    async with front(max_connections=2) as (_, _, port):

        async def is_taken(reader: asyncio.StreamReader) -> bool:
            with contextlib.suppress(ConnectionError):
                return await until(reader, SERVER_SETTINGS) != b""
            return False

        async def two_are_taken_and_no_third() -> bool:
            # There is no room before the server has seen the last ones leave.
            async with client(port) as (first, _), client(port) as (second, _):
                if not (await is_taken(first) and await is_taken(second)):
                    return False
                async with client(port) as (third, _):
                    assert not await is_taken(third)
            return True

        for _ in range(3):
            await wait_until(two_are_taken_and_no_third, what="room for two")


async def test_an_idle_connection_is_closed_and_a_client_of_the_library_s_does_not_notice() -> None:
    async with (
        front(idle_s=0.2) as (_, observer, port),
        client(port) as (reader, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert await channel.unary_unary("/a/b")(b"m") == b"m"
        assert GOING_AWAY in await until(reader, b"never said")  # and then the end
        assert await channel.unary_unary("/a/b")(b"n") == b"n"
    assert [outcome.status for outcome in observer.outcomes] == [200, 200]
