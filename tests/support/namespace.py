"""
Commands in a network and a mount namespace of their own: every port is free there, and names lead where a test says.

That is what a client needs which takes no port and asks for a real name. Linux and root only; `require_namespaces`
says so where it is not to be had. As a program, this file is the launcher that `in_namespaces` puts before a command:
it moves itself there and then becomes the command, under the same process number.
"""

import ctypes
import fcntl
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

STRICT_VARIABLES: Final = ("TESTS_REQUIRE_NAMESPACE", "CI")
"""Where one of them is set, namespaces that cannot be had are a failure."""

HOSTS: Final = Path("/etc/hosts")
_NAME_SERVICES: Final = Path("/etc/nsswitch.conf")

# <sched.h>, <sys/mount.h>, <linux/sockios.h>, <linux/if.h>
_CLONE_NEWNS, _CLONE_NEWNET = 0x0002_0000, 0x4000_0000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x4_0000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_FLAGS_OF: Final = struct.Struct("16sh22x")  # struct ifreq


def in_namespaces(
    command: Sequence[str | Path],
    *,
    own_network: bool = True,
    files: Mapping[Path, Path] | None = None,
    disks: Mapping[Path, str] | None = None,
) -> list[str]:
    """
    *command*, to be run in a mount namespace of its own where each of *files* (which exist) shows what its value holds.

    Each of *disks* (folders that exist) is a file system of its own there, with the options given (``size=3m``).

    With *own_network* also in a network of its own, of which there is 127.0.0.0/8 alone. Without it a command may join
    the network of the one that starts it, and yet have names of its own. It must be the calling process that starts it,
    and it is killed when the thread that did so ends (that is Linux's rule).
    """
    asked = {
        "own_network": own_network,
        "files": [[str(shown), str(file)] for shown, file in (files or {}).items()],
        "disks": [[str(folder), options] for folder, options in (disks or {}).items()],
        "parent": os.getpid(),
    }
    return [sys.executable, "-I", "-S", __file__, json.dumps(asked), *map(str, command)]


def resolving(folder: Path, names: Mapping[str, str]) -> dict[Path, Path]:
    """Files for `in_namespaces`, made in *folder*, so that *names* have these addresses and no other name has any."""
    folder.mkdir(parents=True, exist_ok=True)
    (hosts := folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    (services := folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    return {HOSTS: hosts, **({_NAME_SERVICES: services} if _NAME_SERVICES.exists() else {})}


def make_read_only(pid: int, folder: Path) -> None:
    """Whatever process *pid* opens in *folder* from now on is read-only; what it has open stays as it is."""
    code = (
        "import ctypes, os, sys\n"
        "libc, folder = ctypes.CDLL(None, use_errno=True), os.fsencode(sys.argv[2])\n"
        "if libc.setns(os.open(f'/proc/{sys.argv[1]}/ns/mnt', os.O_RDONLY), 0):\n"
        "    sys.exit(os.strerror(ctypes.get_errno()))\n"
        "for flags in (0x1000, 0x1000 | 0x20 | 0x1):\n"  # MS_BIND; MS_BIND, MS_REMOUNT, MS_RDONLY
        "    if libc.mount(folder, folder, None, ctypes.c_ulong(flags), None):\n"
        "        sys.exit(os.strerror(ctypes.get_errno()))\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(pid), str(folder)], check=True, timeout=20.0)


@functools.cache
def obstacle() -> str:
    """Why there are no namespaces here; empty when there are."""
    probe = in_namespaces([sys.executable, "-I", "-S", "-c", ""], files={HOSTS: HOSTS})
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20.0, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def is_strict(environ: Mapping[str, str]) -> bool:
    """Whether *environ* demands namespaces."""
    return any(environ.get(name, "").lower() not in ("", "0", "false", "no") for name in STRICT_VARIABLES)


def verdict(reason: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """What becomes of a test for whose namespaces there is the obstacle *reason*, and what it says then."""
    if not reason:
        return "run", ""
    if is_strict(environ):
        return "fail", f"NOT SHOWN, and {' or '.join(STRICT_VARIABLES)} demands it: no namespaces here: {reason}"
    return "skip", f"NOT SHOWN: the SDK with its own ports and names; it needs root for its namespaces: {reason}"


def require_namespaces() -> None:
    """Skip the running test where namespaces cannot be had; fail it where they must."""
    import pytest  # noqa: PLC0415 (the launcher has no packages)

    outcome, message = verdict(obstacle(), os.environ)
    if outcome == "fail":
        pytest.fail(message, pytrace=False)
    if outcome == "skip":
        pytest.skip(message)


# --- the launcher -----------------------------------------------------------------------------------------------------


def _launch(asked_json: str, command: Sequence[str]) -> NoReturn:
    asked = json.loads(asked_json)
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")
    if os.getppid() != asked["parent"]:
        sys.exit("the starter has gone")
    kinds = _CLONE_NEWNS | (_CLONE_NEWNET if asked["own_network"] else 0)
    _checked(libc.unshare(kinds), "unshare")
    # Nothing that is mounted from here on shows outside.
    _checked(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount / private")
    for shown, file in asked["files"]:
        done = libc.mount(os.fsencode(file), os.fsencode(shown), None, ctypes.c_ulong(_MS_BIND), None)
        _checked(done, f"mount {file} on {shown}")
    for folder, options in asked["disks"]:
        done = libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), options.encode())
        _checked(done, f"mount a disk at {folder}")
    if asked["own_network"]:
        _bring_up_loopback()
    os.execvp(command[0], list(command))


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        told = fcntl.ioctl(control, _SIOCGIFFLAGS, _FLAGS_OF.pack(b"lo", 0))
        fcntl.ioctl(
            control, _SIOCSIFFLAGS, _FLAGS_OF.pack(b"lo", _FLAGS_OF.unpack(told[: _FLAGS_OF.size])[1] | _IFF_UP)
        )


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        _launch(sys.argv[1], sys.argv[2:])
    except OSError as error:
        sys.exit(str(error))
