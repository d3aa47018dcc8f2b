"""Giving up a port: who was let in is served, who knocks later finds another door."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.server.leaving import connected_to, let_nobody_in, listening_on, take_away


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
    port = listener.getsockname()[1]
    before = open_files()
    with socket.create_connection(listener.getsockname()[:2], timeout=5), socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listening_on({bound.getsockname()[1]}) == []
        (found,) = listening_on({port})
        assert found.copy.getsockname() == listener.getsockname()
        assert found.number == listener.fileno() != found.copy.fileno()
        found.copy.close()
    assert open_files() == before


def test_a_listener_is_taken_from_its_owner_and_connections_stay(listener: socket.socket) -> None:
    address = listener.getsockname()[:2]
    with socket.create_connection(address, timeout=5) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert connected_to({address[1]}) == 1
            (found,) = listening_on({address[1]})
            take_away(found)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=5)
            client.sendall(b"asked")
            assert accepted.recv(16) == b"asked"
    assert connected_to({address[1]}) == 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
