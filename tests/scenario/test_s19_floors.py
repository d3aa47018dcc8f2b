"""S19: no lock file is below a floor, and nothing is served with what is below one, or without the C parser."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from proxy.supervisor import floors
from tests.support.proxy_process import COMMAND, ProxyProcess, ProxyStartError

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))


@pytest.mark.parametrize("name", LOCKS)
def test_s19_no_lock_file_is_below_a_floor(name: str) -> None:
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert locked
    for package, floor in floors.FLOORS.items():
        if package in locked:
            assert floors.is_at_least(locked[package], floor), f"{package} {locked[package]}"


def test_s19_what_is_served_with_is_locked_and_declared() -> None:
    locked = (ROOT / "requirements.lock").read_text()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for package, floor in floors.FLOORS.items():
        assert f"\n{package}==" in f"\n{locked}"
        (least,) = [found[1] for line in declared if (found := re.match(rf"{package}>=([\d.]+)", line))]
        assert floors.is_at_least(least, floor), f"{package}>={least}"


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [
        *(("3.14.3", True), ("3.14.10", True), ("3.15", True), ("4", True), ("3.14.3.post1", True), ("3.15rc1", True)),
        *(("3.14.2", False), ("3.9.9", False), ("3.14", False), ("3.14.3rc1", False), ("3.14.3.dev0", False)),
        ("unknown", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, is_enough: bool) -> None:
    assert floors.is_at_least(version, (3, 14, 3)) is is_enough


def test_s19_each_package_below_its_floor_is_named() -> None:
    assert floors.mistakes() == []
    found = floors.mistakes(lambda _: "0.9")
    assert [line.split()[0] for line in found] == list(floors.FLOORS)


def refused(**options: object) -> str:
    """What a proxy says that does not start."""
    with pytest.raises(ProxyStartError) as caught, ProxyProcess(**options):  # type: ignore[arg-type]
        pass
    assert "exit code 2" in str(caught.value)
    return str(caught.value)


def test_s19_the_proxy_does_not_start_without_the_c_parser(record_property) -> None:
    assert "without its C parser" in refused(env={"AIOHTTP_NO_EXTENSIONS": "1"})
    record_property("figure", ", ".join(f"{name} {'.'.join(map(str, least))}" for name, least in floors.FLOORS.items()))


def test_s19_the_proxy_does_not_start_below_a_floor() -> None:
    lie = (
        "import importlib.metadata as m, sys; real = m.version; "
        "m.version = lambda name: '3.14.2' if name == 'aiohttp' else real(name); "
        "sys.argv = ['dashcache', 'run']; from proxy.cli import main; main()"
    )
    assert COMMAND[0] == sys.executable
    assert "aiohttp 3.14.2 is installed; 3.14.3 or later is needed" in refused(command=(sys.executable, "-c", lie))
