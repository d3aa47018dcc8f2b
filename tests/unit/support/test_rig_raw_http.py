"""The upstream double and the raw client, talking to each other: byte-exact, and every fault is the one asked for."""

import asyncio
import time

import pytest

from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.raw_client import IncompleteResponseError, RawClient, ask, request_bytes
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until


async def test_both_sides_see_the_exact_bytes_over_one_connection():
    async with RawUpstream(answers.respond(b"\x00hi", 201, [(b"x-Odd", b"1"), (b"X-odd", b"2")])) as upstream:
        async with await RawClient.connect(upstream.url) as client:
            head = b"PUT /a%2f?q=%zz& HTTP/1.1\r\nhOST: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            sent = head + b"2;e\r\nab\r\n0\r\nT: v\r\n\r\n"
            await client.send(sent)
            response = await client.read_response(method="PUT")
            assert response.raw == b"HTTP/1.1 201 Created\r\nx-Odd: 1\r\nX-odd: 2\r\nContent-Length: 3\r\n\r\n\x00hi"
            assert response.headers[:2] == ((b"x-Odd", b"1"), (b"X-odd", b"2"))
            again = await client.request("GET", "/b")
            assert again.body == b"\x00hi"
        first, second = upstream.requests
        assert first.raw == sent
        assert bytes(first.connection.received) == sent + second.raw
        assert (first.method, first.target, first.body) == (b"PUT", b"/a%2f?q=%zz&", b"ab")
        assert first.trailers == ((b"T", b"v"),)
        assert first.connection is second.connection
        assert upstream.executions() == {b"/a%2f?q=%zz&": 1, b"/b": 1}
        await upstream.wait_closed(1)
        assert upstream.connections_open == 0


async def test_pipelined_requests_are_two_and_answers_are_read_one_by_one():
    async with RawUpstream(answers.echo()) as upstream, await RawClient.connect(upstream.port) as client:
        one, two = request_bytes("POST", "/1", [], b"x"), request_bytes("GET", "/2")
        await client.send(one + two)
        assert (await client.read_response()).body == one
        assert (await client.read_response()).body == two


async def test_a_barrier_holds_the_next_chunk_and_the_client_sees_each_as_it_comes():
    gate = Gate("second chunk")
    async with (
        RawUpstream(answers.chunked(b"one", gate, b"two", trailers=[(b"T", b"v")])) as upstream,
        await RawClient.connect(upstream.url) as client,
    ):
        await client.send(request_bytes("GET", "/"))
        await gate.wait_arrived()
        opened = time.monotonic()
        gate.open()
        response = await client.read_response()
    (first_at, first), (second_at, second) = response.pieces
    assert (first, second, response.trailers) == (b"one", b"two", ((b"T", b"v"),))
    assert response.raw_body == b"3\r\none\r\n3\r\ntwo\r\n0\r\nT: v\r\n\r\n"
    assert first_at <= second_at
    assert second_at >= opened


async def test_a_body_until_close_is_whole():
    async with RawUpstream(answers.until_close(b"ab", b"cd")) as upstream:
        assert (await ask(upstream.url, "GET", "/")).body == b"abcd"


@pytest.mark.parametrize("by_reset", [False, True])
async def test_a_truncated_answer_is_told_with_all_that_came(by_reset):
    async with (
        RawUpstream(answers.truncated(b"0123456789", 4, by_reset=by_reset)) as upstream,
        await RawClient.connect(upstream.url) as client,
    ):
        with pytest.raises(IncompleteResponseError) as caught:
            await client.request("GET", "/")
        assert client.was_reset is by_reset
    assert caught.value.partial.body == b"0123"


@pytest.mark.parametrize("by_reset", [False, True])
async def test_chunks_without_an_end_are_told(by_reset):
    async with RawUpstream(answers.truncated_chunks(b"abc", by_reset=by_reset)) as upstream:
        with pytest.raises(IncompleteResponseError) as caught:
            await ask(upstream.url, "GET", "/")
    assert caught.value.partial.body == b"abc"


@pytest.mark.parametrize(("answer", "was_reset"), [(answers.reset(), True), (answers.close(), False)])
async def test_no_answer_at_all(answer, was_reset):
    async with RawUpstream(answer) as upstream, await RawClient.connect(upstream.url) as client:
        with pytest.raises(ConnectionResetError, match="no answer"):
            await client.request("GET", "/")
        assert client.was_reset is was_reset


async def test_what_came_before_a_reset_can_be_read_later():
    async with (
        RawUpstream(answers.resetting(answers.respond(b"whole"))) as upstream,
        await RawClient.connect(upstream.url) as client,
    ):
        await client.send(request_bytes("GET", "/"))
        await wait_until(lambda: client.was_reset, what="the reset to arrive")
        assert (await client.read_response()).body == b"whole"


@pytest.mark.parametrize("leave", ["abort", "close", "half-close"])
async def test_the_upstream_notices_at_once_who_leaves_during_a_hang(leave):
    async with RawUpstream(answers.hang()) as upstream:
        client = await RawClient.connect(upstream.url)
        await client.send(request_bytes("GET", "/"))
        await upstream.wait_requests(1)
        assert upstream.connections_open == 1
        before = time.monotonic()
        if leave == "abort":
            client.abort()
        elif leave == "half-close":
            client.half_close()
        else:
            await client.close()
        closed_at = await upstream.wait_closed(1)
        assert before <= closed_at < before + 0.25
        assert upstream.connections_open == 0
        await client.close()


async def test_half_a_request_is_not_an_execution_but_is_remembered():
    async with RawUpstream(answers.respond()) as upstream:
        async with await RawClient.connect(upstream.url) as client:
            await client.send(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
            client.abort()
        await wait_until(lambda: upstream.incomplete, what="the half request")
        assert upstream.requests == []
        assert upstream.incomplete[0].body == b"abc"
        assert not upstream.incomplete[0].complete


async def test_a_request_with_two_framings_is_refused():
    async with RawUpstream(answers.respond()) as upstream, await RawClient.connect(upstream.url) as client:
        await client.send(b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert (await client.read_response()).status == 400
        assert upstream.requests == []
        assert len(upstream.malformed) == 1


async def test_an_answer_may_come_before_the_body():
    async def too_large(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        return True

    async with (
        RawUpstream(answers.respond(), on_head=too_large) as upstream,
        await RawClient.connect(upstream.url) as client,
    ):
        await client.send(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
        assert (await client.read_response()).status == 413


async def test_interim_answers_are_kept_apart():
    script = answers.raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n")
    async with RawUpstream(script) as upstream:
        response = await ask(upstream.url, "GET", "/")
    assert response.status == 204
    assert response.interim[0].get("link") == b"x"


async def test_answers_in_turn_and_after_a_barrier():
    event = asyncio.Event()
    script = answers.in_turn(answers.respond(status=500), answers.after(event, answers.respond(b"late")))
    async with RawUpstream(script) as upstream:
        assert (await ask(upstream.url, "GET", "/")).status == 500
        async with asyncio.TaskGroup() as group:
            late = [group.create_task(ask(upstream.url, "GET", "/")) for _ in range(2)]
            await upstream.wait_requests(3)
            assert not any(task.done() for task in late)
            event.set()
        assert [task.result().body for task in late] == [b"late", b"late"]


async def test_a_broken_script_resets_and_fails_the_test():
    async def broken(request: object, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("script")

    upstream = await RawUpstream(broken).start()
    with pytest.raises(ConnectionResetError):
        await ask(upstream.url, "GET", "/")
    with pytest.raises(ExceptionGroup) as caught:
        await upstream.stop()
    assert caught.group_contains(AssertionError, match="script")


async def test_down_refuses_on_a_port_that_stays_its_own():
    async with RawUpstream(answers.respond(b"up")) as upstream:
        async with await RawClient.connect(upstream.port) as client:
            await client.request("GET", "/")
            port = upstream.port
            await upstream.down()
            assert await client.read_until_closed() == b""
        with pytest.raises(ConnectionRefusedError):
            await RawClient.connect(port)
        await upstream.start()
        assert upstream.port == port
        assert (await ask(upstream.port, "GET", "/")).body == b"up"


async def test_idle_connections_can_be_dropped():
    async with RawUpstream(answers.respond()) as upstream, await RawClient.connect(upstream.port) as client:
        await client.request("GET", "/")
        upstream.drop_connections()
        assert await client.read_until_closed() == b""
        assert upstream.connections[0].peer_closed_at is None


async def test_stopping_ends_hanging_requests():
    async with RawUpstream(answers.hang()) as upstream:
        client = await RawClient.connect(upstream.url)
        await client.send(request_bytes("GET", "/"))
        await upstream.wait_requests(1)
    assert await client.read_until_closed() == b""
    await client.close()


async def test_a_slow_reader_holds_the_sender_back():
    body, drained = b"x" * 30_000_000, asyncio.Event()
    whole = answers.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n", body)

    async def script(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        await whole(request, writer)
        drained.set()

    async with RawUpstream(script) as upstream, await RawClient.connect(upstream.url, read_buffer=1024) as client:
        await client.send(request_bytes("GET", "/"))
        await upstream.wait_requests(1)
        assert await client.reader.read(1) == b"H"
        assert not drained.is_set()
        assert len(await client.reader.readexactly(len(body))) == len(body)
        await asyncio.wait_for(drained.wait(), 5)
