"""Giving up a port: who was let in is served, who knocks later finds another door."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.server.grpc.listener_close import connected_to, let_nobody_in, listening_on, take_away


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with listening(request.param) as made:
        yield made


def listening(host: str, port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((host, port))
    made.listen(16)
    made.settimeout(5)
    return made


def test_who_is_queued_can_be_accepted_and_nobody_comes_after(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()[:2], timeout=5) as queued:
        let_nobody_in(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname()[:2], timeout=0.2)
        accepted, _ = listener.accept()
        with accepted:
            queued.sendall(b"asked")
            assert accepted.recv(16) == b"asked"


def test_who_knocks_meanwhile_is_let_in_by_another() -> None:
    with listening("127.0.0.1") as old, socket.socket() as late:
        let_nobody_in(old)
        late.setblocking(False)
        late.connect_ex(old.getsockname())  # lost, and sent again by the kernel after a second
        with listening("127.0.0.1", old.getsockname()[1]) as new:
            old.close()
            accepted, _ = new.accept()
            accepted.close()


def test_listening_sockets_of_a_library_are_found_and_no_others(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    before = open_files()
    with socket.create_connection(listener.getsockname()[:2], timeout=5), socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listening_on({bound.getsockname()}) == []
        assert listening_on({("127.0.0.9", port)}) == []
        (found,) = listening_on({(host, port)})
        assert found.copy.getsockname() == listener.getsockname()
        assert found.number == listener.fileno() != found.copy.fileno()
        found.copy.close()
    assert open_files() <= before, "what others have let go of meanwhile"


def test_a_listener_is_taken_from_its_owner_and_connections_stay(listener: socket.socket) -> None:
    address = listener.getsockname()[:2]
    with socket.create_connection(address, timeout=5) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert connected_to({address}) == 1
            assert connected_to({("0.0.0.0", address[1])}) == 1
            assert connected_to({("127.0.0.9", address[1])}) == 0
            (found,) = listening_on({address})
            take_away(found)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=5)
            client.sendall(b"asked")
            assert accepted.recv(16) == b"asked"
    assert connected_to({address}) == 0


@pytest.mark.parametrize(("bound", "called"), [("::", "0.0.0.0"), ("::ffff:127.0.0.1", "127.0.0.1")])
def test_an_address_is_the_same_in_either_family(bound: str, called: str) -> None:
    """The library listens on IPv4 addresses with sockets of IPv6."""
    with socket.socket(socket.AF_INET6) as made:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((bound, 0))
        made.listen()
        port = made.getsockname()[1]
        (found,) = listening_on({(called, port)})
        found.copy.close()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            accepted, _ = made.accept()
            with accepted:
                assert connected_to({(called, port)}) == 1


def test_a_number_that_is_somebody_elses_by_now_is_left_alone(listener: socket.socket) -> None:
    (found,) = listening_on({listener.getsockname()[:2]})
    with listening("127.0.0.1") as other:
        os.dup2(other.fileno(), found.number)
        take_away(found)
        assert os.path.sameopenfile(other.fileno(), found.number)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
