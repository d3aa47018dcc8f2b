"""Varnish as a peer: answers to POST kept in its memory, by a hash of the whole body."""

import shutil
from pathlib import Path

PROGRAM = shutil.which("varnishd") or "/usr/sbin/varnishd"
_MODULES = ("/usr/lib/x86_64-linux-gnu/varnish/vmods", "/usr/lib/aarch64-linux-gnu/varnish/vmods")

# Its own rules would pass a POST, and make a GET of what they fetch.
_VCL = """\
vcl 4.1;
import std;
import bodyaccess;
backend default {{ .host = "127.0.0.1"; .port = "{upstream}"; }}
sub vcl_recv {{ std.cache_req_body(64KB); return (hash); }}
sub vcl_hash {{ bodyaccess.hash_req_body(); }}
sub vcl_backend_fetch {{ set bereq.method = "POST"; return (fetch); }}
sub vcl_backend_response {{ set beresp.ttl = 1h; return (deliver); }}
"""


def is_there() -> bool:
    """Whether it is installed, with the module that hashes bodies (Debian: varnish, varnish-modules)."""
    found = any((Path(folder) / "libvmod_bodyaccess.so").exists() for folder in _MODULES)
    return found and Path(PROGRAM).exists()


def command(folder: Path, port: int, upstream: int) -> list[str]:
    """What starts it on *port*; its rules and its files are in *folder*."""
    rules = folder / "rules.vcl"
    rules.write_text(_VCL.format(upstream=upstream))
    listen, work = ["-a", f"127.0.0.1:{port}"], ["-n", str(folder / "work")]
    return [PROGRAM, "-F", "-j", "none", *listen, *work, "-f", str(rules), "-s", "malloc,256m"]
