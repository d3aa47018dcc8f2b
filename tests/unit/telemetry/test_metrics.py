"""Counters: what an outcome adds up to, and that requests cannot make series."""

import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import mmap_dict

from proxy.admin.metric_files import MetricFiles
from proxy.control.live import LiveModes
from proxy.core.modes import Mode, Modes, Rule
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import PassReason, Refusal
from proxy.core.trouble import Trouble
from proxy.settings.model import Start
from proxy.telemetry import labels
from proxy.telemetry.metric_space import RoomyDict
from proxy.telemetry.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(("dashscope",))


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[MetricFiles]:
    made = MetricFiles(tmp_path)
    yield made
    made.close()
    assert made.directory is not None
    assert not made.directory.exists()


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, f"no sample {name} {labels}"
    return found


def series(metrics: Metrics) -> int:
    return sum(len(metric.samples) for metric in metrics.registry.collect())


def test_a_hit_counts_items_tokens_and_a_saved_call(metrics: Metrics) -> None:
    metrics.observe(
        Outcome(
            operation="embedding",
            upstream="dashscope",
            state=CacheState.HIT,
            status=200,
            items=3,
            hits_memory=1,
            hits_redis=2,
            tokens_saved=17,
            total_ms=0.4,
        )
    )
    assert value(metrics, "dashcache_requests_total", operation="embedding", state="hit") == 1
    assert value(metrics, "dashcache_items_total", operation="embedding", result="memory") == 1
    assert value(metrics, "dashcache_items_total", operation="embedding", result="redis") == 2
    assert value(metrics, "dashcache_tokens_saved_total", operation="embedding", model="other") == 17
    assert value(metrics, "dashcache_operation_calls_total", operation="embedding", result="saved") == 1
    bucket = {"operation": "embedding", "state": "hit", "le": "0.0005"}
    assert value(metrics, "dashcache_request_duration_seconds_bucket", **bucket) == 1


def test_a_miss_counts_calls_by_status(metrics: Metrics) -> None:
    metrics.observe(
        Outcome(
            operation="embedding",
            upstream="dashscope",
            state=CacheState.MISS,
            items=2,
            forwarded=2,
            upstream_calls=1,
            upstream_status=429,
            upstream_ms=120,
            detail=Refusal.STATUS,
            status=429,
        )
    )
    assert value(metrics, "dashcache_items_total", operation="embedding", result="forwarded") == 2
    assert value(metrics, "dashcache_answers_total", status="429") == 1
    assert value(metrics, "dashcache_operation_calls_total", operation="embedding", result="made") == 1
    assert value(metrics, "dashcache_operation_calls_total", operation="embedding", result="saved") == 0
    assert value(metrics, "dashcache_not_cached_total", operation="embedding", reason="status") == 1


def test_batches_are_counted_with_their_items(metrics: Metrics) -> None:
    metrics.batched(3, is_right=True)
    metrics.batched(10, is_right=False)
    assert value(metrics, "dashcache_batch_items_count") == 2
    assert value(metrics, "dashcache_batch_items_sum") == 13
    assert value(metrics, "dashcache_batches_undone_total") == 1


@pytest.mark.parametrize(
    ("end", "label"),
    [(200, "2xx"), (201, "2xx"), (401, "401"), (403, "403"), (404, "4xx"), (429, "429"), (503, "5xx"), (101, "other")]
    + [(trouble, trouble.value) for trouble in Trouble],
)
def test_calls_are_counted_by_how_they_ended(metrics: Metrics, end: int | Trouble, label: str) -> None:
    metrics.call_ended("dashscope", end)
    metrics.call_ended("who knows", end)
    assert value(metrics, "dashcache_upstream_calls_total", upstream="dashscope", end=label) == 1
    assert value(metrics, "dashcache_upstream_calls_total", upstream="other", end=label) == 1


def test_since_when_an_upstream_fails_is_shown_by_cause(metrics: Metrics) -> None:
    def since(cause: Trouble) -> float:
        return value(metrics, "dashcache_upstream_failing_since_seconds", upstream="dashscope", cause=cause)

    metrics.upstream_failing("dashscope", Trouble.REFUSED, 1234.5)
    assert since(Trouble.REFUSED) == 1234.5
    metrics.upstream_failing("dashscope", Trouble.TLS, 1234.5)
    assert (since(Trouble.REFUSED), since(Trouble.TLS)) == (0, 1234.5)
    metrics.upstream_failing("dashscope", None, 1234.5)
    assert since(Trouble.TLS) == 0


def test_answers_to_clients_are_counted_by_status(metrics: Metrics) -> None:
    for status in (200, 401, 403, 404, 429, 502, 0, 700):
        metrics.observe(Outcome(status=status))
    found = {label: value(metrics, "dashcache_answers_total", status=label) for label in labels.ANSWERS}
    assert found == dict.fromkeys(labels.ANSWERS, 1) | {"3xx": 0}


@pytest.mark.parametrize("operation", ["vector-query", "vector-stats"])
def test_a_vector_hit_counts_as_a_saved_call(metrics: Metrics, operation: str) -> None:
    metrics.observe(Outcome(operation=operation, state=CacheState.HIT, status=200, items=1, hits_redis=1))
    assert value(metrics, "dashcache_items_total", operation=operation, result="redis") == 1
    assert value(metrics, "dashcache_operation_calls_total", operation=operation, result="saved") == 1


def test_a_write_is_a_request_and_a_call_and_no_item(metrics: Metrics) -> None:
    write = Outcome(operation="vector-write", upstream="dashscope", state=CacheState.WRITE, status=200)
    write.upstream_calls, write.upstream_status = 1, 200
    metrics.observe(write)
    assert value(metrics, "dashcache_requests_total", operation="vector-write", state="write") == 1
    assert value(metrics, "dashcache_operation_calls_total", operation="vector-write", result="made") == 1
    assert value(metrics, "dashcache_items_total", operation="vector-write", result="forwarded") == 0


def test_bypassed_items_do_not_spoil_the_hit_ratio(metrics: Metrics) -> None:
    metrics.observe(
        Outcome(operation="embedding", state=CacheState.BYPASS, detail=PassReason.BYPASS, items=5, forwarded=5)
    )
    assert value(metrics, "dashcache_items_total", operation="embedding", result="forwarded") == 0


def test_shadow_counts_what_would_have_been(metrics: Metrics) -> None:
    metrics.observe(
        Outcome(
            operation="embedding",
            state=CacheState.BYPASS,
            detail=PassReason.SHADOW,
            items=5,
            shadow_hits=3,
            shadow_mismatches=1,
        )
    )
    counted = {
        result: value(metrics, "dashcache_shadow_total", result=result) for result in ("hit", "miss", "mismatch")
    }
    assert counted == {"hit": 3, "miss": 2, "mismatch": 1}


def test_requests_cannot_make_series(metrics: Metrics) -> None:
    """Reliability R9: whatever clients send, the number of series stays."""
    for operation in ("embedding", "other"):
        metrics.observe(Outcome(operation=operation, detail="x", upstream_calls=1))
    before = series(metrics)
    for number in range(300):
        metrics.observe(
            Outcome(
                operation=f"operation-{number}",
                upstream=f"upstream-{number}",
                detail=f"detail-{number}",
                upstream_calls=1,
                upstream_status=number * 10,
            )
        )
        metrics.redis_failed(f"kind-{number}")
        metrics.call_ended(f"upstream-{number}", number)
    assert series(metrics) == before
    assert value(metrics, "dashcache_requests_total", operation="other", state="pass") == 301
    assert value(metrics, "dashcache_redis_failures_total", kind="other") == 300


def test_telemetry_is_counted(metrics: Metrics) -> None:
    metrics.breaker_changed("closed", "open")
    metrics.breaker_changed("open", "half-open")
    assert value(metrics, "dashcache_breaker_open_workers") == 1
    metrics.breaker_changed("half-open", "closed")
    assert value(metrics, "dashcache_breaker_open_workers") == 0
    metrics.stored(5, 2)
    metrics.entries_rejected(3)
    metrics.memory(7, 900)
    metrics.background_failed(ValueError("secret"))
    metrics.invalidated(told=True)
    metrics.invalidated(told=False)
    metrics.invalidated(told=False)
    metrics.pending(7)
    metrics.pending(4)
    assert value(metrics, "dashcache_invalidations_total", result="told") == 1
    assert value(metrics, "dashcache_invalidations_total", result="untold") == 2
    assert value(metrics, "dashcache_pending_invalidations") == 4
    assert value(metrics, "dashcache_stores_total", result="stored") == 5
    assert value(metrics, "dashcache_stores_total", result="failed") == 2
    assert value(metrics, "dashcache_entries_rejected_total") == 3
    assert value(metrics, "dashcache_memory_bytes") == 900
    assert value(metrics, "dashcache_background_failures_total") == 1


def test_every_metric_has_a_help_text(metrics: Metrics) -> None:
    for metric in metrics.registry.collect():
        assert len(metric.documentation) > 10, metric.name


def _write(directory: Path, name: str, values: dict[str, float]) -> None:
    file = mmap_dict.MmapedDict(str(directory / name))
    for key, amount in values.items():
        file.write_value(key, amount, 0.0)
    file.close()


def _key(name: str) -> str:
    return mmap_dict.mmap_key(name, f"{name}_total", [], [], "Help.")


async def test_what_dead_workers_counted_stays_and_their_files_go(files: MetricFiles) -> None:
    for pid in (101, 102, 103):
        _write(files.directory, f"counter_{pid}.db", {_key("dashcache_things"): pid})
        gauge = mmap_dict.mmap_key("dashcache_rows", "dashcache_rows", [], [], "Help.")
        _write(files.directory, f"gauge_livesum_{pid}.db", {gauge: 1.0})
    for pid in (101, 102, 999):
        await files.worker_died(pid)
    totals = await files.totals()
    assert totals["dashcache_things_total", ()] == 306
    assert totals["dashcache_rows", ()] == 1
    assert sorted(path.name for path in files.directory.iterdir()) == [
        "counter_103.db",
        "gauge_livesum_103.db",
    ]


async def test_the_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    killed = MetricFiles(tmp_path)
    again = MetricFiles(tmp_path)
    assert not killed.directory.exists()
    again.close()
    assert not again.directory.exists()


async def test_a_file_broken_by_a_dying_worker_costs_its_figures_only(files: MetricFiles) -> None:
    (files.directory / "counter_7.db").write_bytes(b"\xff\x00")
    await files.worker_died(7)
    assert b"dashcache_workers" in await files.render()


async def test_the_modes_are_gauges(files: MetricFiles) -> None:
    modes = LiveModes(Start())
    modes.replace(Modes().with_rule(Rule(Mode.BYPASS, operation="embedding", set_unix_s=1.0)))
    modes.replace(modes.switched.with_rule(Rule(Mode.BYPASS, operation="vector-query", set_unix_s=1.0)))
    files.modes(modes, {"dashscope": ("embedding",)})
    totals = await files.totals()
    # No upstream has it.
    assert totals["dashcache_mode_active", (("mode", "bypass"), ("operation", "vector-query"))] == 0
    assert ("dashcache_mode_active", (("mode", "bypass"), ("operation", "vector-write"))) not in totals
    assert totals["dashcache_mode_active", (("mode", "bypass"), ("operation", "embedding"))] == 1
    assert totals["dashcache_mode_active", (("mode", "shadow"), ("operation", "embedding"))] == 0


@pytest.fixture(autouse=True)
def _no_shared_folder() -> None:
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


def test_the_line_before_an_upstream_and_connections_are_counted(metrics: Metrics) -> None:
    before = series(metrics)
    for upstream in ("dashscope", "who knows"):
        metrics.upstream_refused(upstream, "queue-full")
        metrics.upstream_refused(upstream, "queue-wait")
        metrics.upstream_load(upstream, 7, 3)
    metrics.connection_ended("ClientTooSlow")
    metrics.connections(11)
    metrics.held_bytes(12)
    for name in ("dashscope", "other"):
        assert value(metrics, "dashcache_upstream_refused_total", upstream=name, reason="queue-full") == 1
        assert value(metrics, "dashcache_upstream_inflight", upstream=name) == 7
        assert value(metrics, "dashcache_upstream_queue", upstream=name) == 3
    assert value(metrics, "dashcache_connections_ended_total", reason="ClientTooSlow") == 1
    assert value(metrics, "dashcache_connections") == 11
    assert value(metrics, "dashcache_held_bytes") == 12
    assert series(metrics) == before + 4  # the gauges of two upstreams


# --- files without space ---


async def test_r19_the_supervisor_maps_no_file(files: MetricFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.directory is not None
    _write(files.directory, "counter_7.db", {_key("dashcache_things"): 2.0})
    monkeypatch.delattr(mmap_dict.mmap, "mmap")
    await files.worker_died(7)
    assert (await files.totals())["dashcache_things_total", ()] == 2


async def test_r19_a_file_of_a_dead_worker_that_stays_is_counted_once(
    files: MetricFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.directory is not None
    gauge = mmap_dict.mmap_key("dashcache_rows", "dashcache_rows", [], [], "Help.")
    _write(files.directory, "counter_7.db", {_key("dashcache_things"): 2.0})
    _write(files.directory, "gauge_livesum_7.db", {gauge: 5.0})

    def refused(_path: Path) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "unlink", refused)
    for _ in range(2):
        await files.worker_died(7)
        totals = await files.totals()
        assert totals["dashcache_things_total", ()] == 2
        assert ("dashcache_rows", ()) not in totals
    monkeypatch.undo()


async def test_r19_without_any_folder_the_supervisor_counts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> str:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    files = MetricFiles(tmp_path)
    assert files.directory is None
    assert files.lacks([1]) == ["metrics of all workers: no folder can be written"]
    files.workers(1, 2)
    assert (await files.totals())["dashcache_workers_wanted", ()] == 2
    await files.worker_died(1)
    files.close()


def _no_space(_number: int, _offset: int, size: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), size)


async def test_r19_a_worker_without_space_counts_in_its_memory(
    files: MetricFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.directory is not None
    monkeypatch.setattr(os, "posix_fallocate", _no_space)
    figures = RoomyDict(str(files.directory / "counter_7.db"))
    keys = [_key(f"dashcache_things_{number}") for number in range(2_000)]
    for number, key in enumerate(keys):
        figures.write_value(key, float(number), 0.0)
    assert [figures.read_value(key)[0] for key in keys] == [float(number) for number in range(2_000)]
    figures.close()
    assert not list(files.directory.iterdir())
    assert files.lacks([7]) == ["metrics of 1 of 1 workers: their folder cannot be written"]


async def test_r19_a_file_that_cannot_grow_goes_on_in_memory(
    files: MetricFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.directory is not None
    figures = RoomyDict(str(files.directory / "counter_7.db"))
    figures.write_value(_key("dashcache_first"), 1.0, 0.0)
    assert (await files.totals())["dashcache_first_total", ()] == 1
    monkeypatch.setattr(os, "posix_fallocate", _no_space)
    for number in range(2_000):
        figures.write_value(_key(f"dashcache_things_{number}"), 2.0, 0.0)
    assert figures.read_value(_key("dashcache_first"))[0] == 1
    assert figures.read_value(_key("dashcache_things_1999"))[0] == 2
    assert not list(files.directory.iterdir())  # no figure that stands still
    figures.close()


async def test_r19_a_file_has_the_space_of_its_length(files: MetricFiles) -> None:
    assert files.directory is not None
    path = files.directory / "counter_7.db"
    figures = RoomyDict(str(path))
    for number in range(2_000):
        figures.write_value(_key(f"dashcache_things_{number}"), 1.0, 0.0)
        assert path.stat().st_blocks * 512 >= path.stat().st_size
    figures.close()
    assert (await files.totals())["dashcache_things_1999_total", ()] == 1


async def test_r19_a_file_system_that_promises_no_space_is_written_to(
    files: MetricFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    assert files.directory is not None
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    path = files.directory / "counter_7.db"
    figures = RoomyDict(str(path))
    for number in range(2_000):
        figures.write_value(_key(f"dashcache_things_{number}"), 1.0, 0.0)
    figures.close()
    assert (await files.totals())["dashcache_things_1999_total", ()] == 1


async def test_r19_a_folder_that_was_removed_is_made_anew(files: MetricFiles) -> None:
    assert files.directory is not None
    shutil.rmtree(files.directory)
    assert await files.render()
    figures = RoomyDict(str(files.directory / "counter_7.db"))
    figures.write_value(_key("dashcache_things"), 1.0, 0.0)
    assert (await files.totals())["dashcache_things_total", ()] == 1
    figures.close()
