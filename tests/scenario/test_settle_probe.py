"""The settle probe as operators run it, against a vendor that shows writes late, refuses, or does not answer."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.canary import assert_absent, make_secret
from tests.support.child import send_signal, spawn
from tests.support.gate import Gate
from tests.support.ports import PortReservation
from tests.support.proxy_process import PASSED_ON, ROOT
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import DashVectorFault, DashVectorRecord, DashVectorSim, DashVectorThreadSim, dashvector_thread
from tests.vendor_sim.dashvector_model import CollectionSpec, RawDoc, VectorSpec, WriteRequest
from tests.vendor_sim.dashvector_writes import upsert

SCRATCH = "scratch"
DELAY_S = 0.12
KINDS = {"shown_by_fetch", "shown_by_query", "gone_by_fetch", "gone_by_query"}


class Finished(NamedTuple):
    status: int
    output: str
    errors: str


@pytest.fixture
def key() -> str:
    return make_secret("sk-dv-")


@pytest.fixture
def sim() -> Iterator[DashVectorThreadSim]:
    with dashvector_thread() as running:
        running.call(lambda sim: sim.store.create(CollectionSpec(SCRATCH, {"": VectorSpec(4)})))
        running.call(lambda sim: upsert(sim.store, SCRATCH, WriteRequest([RawDoc("not-ours", {"": [0.1] * 4})])))
        yield running


@contextmanager
def started(key: str, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command as a child process; it is gone afterwards."""
    env = {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "DASHVECTOR_API_KEY": key,
        # A proxy of the surroundings is nobody's business: every call would fail.
        "http_proxy": "http://127.0.0.1:1",
        **environment,
    }
    command = [sys.executable, "-m", "proxy", "settle-probe", "--collection", SCRATCH, *arguments]
    with spawn(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(process: "subprocess.Popen[bytes]", key: str) -> Finished:
    output, errors = process.communicate(timeout=40)
    assert_absent(output + errors, key, where="what the command printed")
    return Finished(process.returncode, output.decode(), errors.decode())


def run(key: str, *arguments: str, **environment: str) -> Finished:
    with started(key, *arguments, **environment) as process:
        return finished(process, key)


def left(sim: DashVectorThreadSim) -> list[str]:
    """The documents of the scratch collection, shown or not."""
    return sim.call(lambda one: list(one.store.partition(SCRATCH, "default").current))


def written(sim: DashVectorThreadSim) -> set[str]:
    """The ids of all documents that were asked to be written."""
    bodies = [json.loads(record.body) for record in sim.requests if record.operation == "upsert_doc"]
    return {doc["id"] for body in bodies for doc in body["docs"]}


class Late:
    """
    Shows each write DELAY_S after the first read that follows it.

    That read was sent once the write's acknowledgement had arrived. So no figure can be less than DELAY_S, however
    slow the machine is; counted from the write's execution it could, by the way of the acknowledgement.
    """

    def __init__(self, sim: DashVectorSim) -> None:
        self._sim = sim
        self._is_waited_for = True

    async def __call__(self, record: DashVectorRecord) -> None:
        if record.operation in ("upsert_doc", "delete_doc"):
            self._sim.hold_visibility()
            self._is_waited_for = False
        elif record.operation in ("fetch_doc", "query_doc") and not self._is_waited_for:
            self._is_waited_for = True
            asyncio.get_running_loop().call_later(DELAY_S, self._sim.store.release)


def make_late(sim: DashVectorThreadSim) -> None:
    def change(one: DashVectorSim) -> None:
        one.before_execute = Late(one)

    sim.call(change)


@pytest.mark.parametrize("vectors", [{"": 4}, {"title": 2, "body": 3}])
def test_what_is_measured_is_the_delay(
    sim: DashVectorThreadSim, key: str, vectors: dict[str, int], tmp_path: Path
) -> None:
    specs = {name: VectorSpec(dimension) for name, dimension in vectors.items()}
    sim.reset()
    sim.call(lambda one: one.store.create(CollectionSpec(SCRATCH, specs)))
    sim.configure(tokens=[key])
    make_late(sim)
    metrics = tmp_path / "dashcache.prom"
    result = run(key, "--url", sim.http_url, "--rounds", "3", "--json", "--metrics-file", str(metrics))
    assert result.status == 0, result.errors
    document: dict[str, Any] = json.loads(result.output)
    assert document["milliseconds"].keys() == KINDS
    assert all(figures["min"] >= DELAY_S * 1_000 for figures in document["milliseconds"].values())
    assert document["recommended_settle_s"] >= 2 * DELAY_S
    assert (document["rounds"], document["configured_settle_s"]) == (3, 2.0)
    assert f'quantile="max"}} {document["milliseconds"]["gone_by_query"]["max"] / 1_000:.6f}' in metrics.read_text()
    assert (sim.executed["upsert_doc"], sim.executed["delete_doc"]) == (3, 3)
    assert left(sim) == []
    assert all(doc_id.startswith("dashcache-probe-") for doc_id in written(sim))


def test_a_shorter_configured_window_is_warned_of(sim: DashVectorThreadSim, key: str) -> None:
    make_late(sim)
    environment = {"DASHCACHE_DASHVECTOR_URL": sim.http_url, "DASHCACHE_VECTOR_SETTLE_S": "0.2"}
    result = run(key, "--rounds", "1", **environment)
    assert result.status == 0, result.errors
    assert f"{SCRATCH} at {sim.http_url}, rounds: 1" in result.output
    assert "configured: 0.2" in result.output
    assert result.errors.startswith("warning: vector.settle_s is 0.2")
    assert left(sim) == ["not-ours"]


def test_a_limited_rate_slows_the_probe_down_and_is_told(sim: DashVectorThreadSim, key: str) -> None:
    sim.add_faults(DashVectorFault(code=-2034, times=2, operation="upsert_doc"))
    sim.add_faults(DashVectorFault(code=-2034, times=2, operation="query_doc"))
    result = run(key, "--url", sim.http_url, "--rounds", "1")
    assert result.status == 0, result.errors
    assert "warning: 4 calls were refused for their rate" in result.errors


def test_figures_are_shown_though_their_file_cannot_be_written(sim: DashVectorThreadSim, key: str) -> None:
    result = run(key, "--url", sim.http_url, "--rounds", "1", "--metrics-file", "/proc/dashcache.prom")
    assert result.status == 1
    assert "settle_s: at least" in result.output
    assert result.errors.startswith("/proc/dashcache.prom: ")


def test_a_wrong_key_is_refused(sim: DashVectorThreadSim, key: str) -> None:
    sim.configure(tokens=["another"])
    result = run(key, "--url", sim.http_url)
    assert (result.status, result.output) == (1, "")
    assert result.errors.startswith("the key in DASHVECTOR_API_KEY is refused: ")
    assert sim.asked.keys() == {"describe_collection"}


def test_a_missing_collection_is_told(sim: DashVectorThreadSim, key: str) -> None:
    sim.reset()
    result = run(key, "--url", sim.http_url)
    assert result.status == 1
    assert result.errors.startswith(f"there is no collection {SCRATCH}: ")
    assert "InexistentCollection" in result.errors


def test_vectors_of_another_type_are_told(sim: DashVectorThreadSim, key: str) -> None:
    sim.reset()
    specs = {"": VectorSpec(4, dtype="INT", metric="euclidean")}
    sim.call(lambda one: one.store.create(CollectionSpec(SCRATCH, specs)))
    result = run(key, "--url", sim.http_url)
    assert result.status == 1
    assert "is of type INT; the probe writes FLOAT only" in result.errors
    assert written(sim) == set()


def test_nobody_listening_is_told(key: str) -> None:
    port = PortReservation()
    try:
        result = run(key, "--url", f"http://127.0.0.1:{port.port}")
    finally:
        port.close()
    assert result.status == 1
    assert result.errors == f"http://127.0.0.1:{port.port}: no connection (Connection refused)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_deletes_its_document(sim: DashVectorThreadSim, key: str, number: signal.Signals) -> None:
    with sim.hold_visibility(), started(key, "--url", sim.http_url) as process:
        wait_until_sync(lambda: sim.executed["query_doc"] > 0, 30.0, "the first poll")
        assert set(left(sim)) == {"not-ours", *written(sim)}
        send_signal(process.pid, number)
        result = finished(process, key)
    assert result.status == 1
    assert result.errors.splitlines()[-1] == "interrupted, nothing was measured"
    assert left(sim) == ["not-ours"]


def test_an_interrupted_write_is_deleted_once_it_has_happened(sim: DashVectorThreadSim, key: str) -> None:
    gate = Gate("upserts")

    async def before_execute(record: DashVectorRecord) -> None:
        if record.operation == "upsert_doc":
            await gate.wait()

    def change(one: DashVectorSim) -> None:
        one.before_execute = before_execute

    sim.call(change)
    with started(key, "--url", sim.http_url) as process:
        sim.run(gate.wait_arrived(timeout=15.0))
        send_signal(process.pid, signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"interrupted: ")
        sim.call(lambda _: gate.open())
        assert finished(process, key).status == 1
    assert (sim.executed["upsert_doc"], sim.executed["delete_doc"]) == (1, 1)
    assert left(sim) == ["not-ours"]


def test_a_write_that_is_never_answered_is_deleted(sim: DashVectorThreadSim, key: str) -> None:
    sim.add_faults(DashVectorFault(wrong="timeout", stage="after", operation="upsert_doc"))
    result = run(key, "--url", sim.http_url, "--timeout", "2s")
    assert (result.status, result.errors) == (1, f"{sim.http_url}: no answer in time\n")
    assert sim.executed["upsert_doc"] == 1
    assert left(sim) == ["not-ours"]


def test_what_never_shows_ends_at_the_timeout(sim: DashVectorThreadSim, key: str) -> None:
    with sim.hold_visibility():
        result = run(key, "--url", sim.http_url, "--timeout", "2s")
    assert result.status == 1
    assert result.errors.startswith("round 1: not shown by fetch and shown by query, 3 times in a row, within 2 s")
    assert left(sim) == ["not-ours"]


def test_a_document_that_cannot_be_deleted_is_named(sim: DashVectorThreadSim, key: str) -> None:
    sim.add_faults(DashVectorFault(code=-2030, operation="delete_doc"))
    result = run(key, "--url", sim.http_url, "--rounds", "1")
    (doc_id,) = written(sim)
    assert result.status == 1
    assert result.errors.startswith(f"the document {doc_id} in the collection {SCRATCH} may be left behind: ")
    assert sim.asked["delete_doc"] == 4, "once in the round, and three times to clean up"
