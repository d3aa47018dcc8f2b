"""The namespaces themselves: what is different inside, what stays outside, and what is said where there are none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import namespace
from tests.support.child import process_info, process_state
from tests.support.namespace import in_namespaces, require_namespaces, resolving
from tests.support.waiting import wait_until_sync

NAME = "vrs-cn-test.dashvector.cn-hangzhou.aliyuncs.com"
ADDRESS = "127.0.0.9"

_LOOK = """
import json, socket, sys
name, address = sys.argv[1:]
with socket.create_server((address, 443)) as server, socket.create_connection((name, 443), 5.0) as client:
    peer = client.getpeername()
try:
    elsewhere = socket.getaddrinfo("dashvector.console.aliyun.com", 443)
except OSError as error:
    elsewhere = type(error).__name__
print(json.dumps([peer, elsewhere, [name for _, name in socket.if_nameindex()]]))
"""


def test_inside_a_name_leads_where_it_is_told_and_every_port_is_free(tmp_path: Path) -> None:
    require_namespaces()
    hosts = Path("/etc/hosts").read_bytes()
    files = resolving(tmp_path / "names", {NAME: ADDRESS})
    command = in_namespaces([sys.executable, "-c", _LOOK, NAME, ADDRESS], files=files)
    # At the same time twice: each has the port for itself.
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        printed, _ = one.communicate(timeout=20.0)
        peer, elsewhere, interfaces = json.loads(printed)
        assert peer == [ADDRESS, 443]
        assert elsewhere == "gaierror"
        assert interfaces == ["lo"]
    assert Path("/etc/hosts").read_bytes() == hosts


def test_a_command_may_have_names_of_its_own_in_the_network_that_it_was_started_in(tmp_path: Path) -> None:
    require_namespaces()
    files = resolving(tmp_path / "names", {NAME: ADDRESS})
    link = Path("/proc/self/ns/net")
    told = subprocess.run(
        in_namespaces(["sh", "-c", f"readlink {link}; cat /etc/hosts"], own_network=False, files=files),
        capture_output=True,
        text=True,
        check=True,
        timeout=20.0,
    )
    assert told.stdout.splitlines() == [str(link.readlink()), f"{ADDRESS} {NAME}"]


_STARTER = """
import subprocess, sys
from tests.support.namespace import in_namespaces
print(subprocess.Popen(in_namespaces(["sleep", "600"])).pid, flush=True)
sys.stdin.read()
"""


def test_what_runs_inside_dies_with_its_starter() -> None:
    require_namespaces()
    starter = subprocess.Popen([sys.executable, "-c", _STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdin is not None
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    wait_until_sync(lambda: (info := process_info(pid)) and info.command[:1] == ("sleep",), 10.0, "the command to run")
    starter.kill()
    starter.communicate(timeout=10.0)
    wait_until_sync(lambda: process_state(pid) in (None, "Z"), 10.0, "it to die")


@pytest.mark.parametrize(
    ("environ", "outcome"),
    [
        ({}, "skip"),
        ({"CI": "", "TESTS_REQUIRE_NAMESPACE": "0"}, "skip"),
        ({"CI": "false"}, "skip"),
        ({"CI": "true"}, "fail"),
        ({"TESTS_REQUIRE_NAMESPACE": "1"}, "fail"),
        ({"TESTS_REQUIRE_NAMESPACE": "1", "CI": "false"}, "fail"),
    ],
)
def test_without_namespaces_it_says_loudly_that_nothing_was_shown_and_ci_does_not_take_that(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], outcome: str
) -> None:
    for name in namespace.STRICT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(namespace, "obstacle", lambda: "unshare: Operation not permitted")
    raised = pytest.skip.Exception if outcome == "skip" else pytest.fail.Exception
    with pytest.raises(raised, match=r"^NOT SHOWN.*unshare: Operation not permitted$"):
        require_namespaces()
