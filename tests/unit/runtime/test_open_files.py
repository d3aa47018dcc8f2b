"""How many connections there is room for, by what the system allows."""

import resource

import pytest

from proxy.runtime import open_files

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "room", "raised"),
    [
        (1024, 4096, 3846, (4096, 4096)),  # as far as it may
        (1024, 1_000_000, 10_000, (10_250, 1_000_000)),  # no further than it must
        (1024, INFINITY, 10_000, (10_250, INFINITY)),
        (20_000, 20_000, 10_000, None),
        (INFINITY, INFINITY, 10_000, None),
        (100, 100, 16, (100, 100)),  # something
    ],
)
def test_room(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, room: int, raised: tuple[int, int] | None) -> None:
    now = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, limits: now.append(limits))
    assert open_files.room_for(10_000, 250) == room
    assert now[1:] == ([raised] if raised else [])


def test_few_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (20_000, 20_000))
    assert open_files.room_for(3, 250) == 3
