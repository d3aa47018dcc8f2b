"""Stands in for the product in the tests of `proxy_process`: the same contract, and bad manners on demand (FAKE)."""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MANNERS = os.environ.get("FAKE", "")


class Admin(BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/readyz":
            self.answer(503, b"not ready")
        elif self.path == "/metrics":
            self.answer(200, b"a 1\n")
        elif self.path == "/v1/nothing":
            self.answer(404)
        else:
            seen = {"path": self.path, "token": self.headers["Authorization"], "env": dict(os.environ)}
            self.answer(200, json.dumps(seen).encode())

    def do_PUT(self) -> None:
        self.answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *args: object) -> None:
        pass


def log(**record: object) -> None:
    sys.stderr.write(json.dumps(record) + "\n")
    sys.stderr.flush()


def spawn(program: str, *words: str, **options: bool) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, *words], **options)


def main() -> int:
    if MANNERS == "dies":
        log(event="error", why="no config")
        return 3
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    sleep = "import time; time.sleep(600)"
    workers = [spawn(sleep) for _ in range(int(os.environ["DASHCACHE_WORKERS"]))]
    helper = spawn(sleep, "redis-server")
    if MANNERS == "leaves":
        grandchild = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}"
        spawn(grandchild, start_new_session=True)
    if MANNERS == "never-ready":
        stopped.wait()
    admin = ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    threading.Thread(target=admin.serve_forever, daemon=True).start()
    if MANNERS == "noisy":
        for number in range(20_000):
            sys.stderr.write(f"not json {number}\n")
        print("on stdout", flush=True)
    address = f"127.0.0.1:{admin.server_address[1]}"
    log(event="ready", http=["127.0.0.1:1"], https=["127.0.0.1:2"], grpc=["h:3"], grpcs=["h:4"], admin=address)
    while not stopped.wait(0.05) or MANNERS == "stubborn":
        log(event="tick", pid=os.getpid())
    for child in [] if MANNERS == "leaves" else [*workers, helper]:
        child.kill()
        child.wait()
    log(event="bye", level="info")
    return 0


if __name__ == "__main__":
    sys.exit(main())
