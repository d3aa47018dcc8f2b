"""The comparison with peers: its scripts and servers fit what is asked of them, and its page tells what was found."""

import inspect
import json
import os
from pathlib import Path

import pytest

from benchmarks.peers import figures, report
from benchmarks.peers.content import DIMENSION, OPENAI_TARGET, TEXTS, answer, body, openai_body, text
from benchmarks.peers.crowd import latencies_ms
from benchmarks.peers.load import one_by_one_ms, scripts, wrk
from benchmarks.peers.machine import OTHER_CORE, PLACED, free_port, placed, process, python
from proxy.cache.vector_packing import Form, pack
from tests.support.proxy_process import ProxyProcess


def test_an_answer_is_what_the_cache_can_hold_compactly() -> None:
    """Spelled otherwise, it would be kept as text, and another thing would be measured."""
    rows = json.loads(answer(body(["a", "b"])))["output"]["embeddings"]
    assert [len(row["embedding"]) for row in rows] == [DIMENSION] * 2
    text_of = json.dumps(rows[0]["embedding"], separators=(",", ":")).encode()
    assert pack(text_of)[0] not in (Form.TEXT, Form.DOUBLE)


def test_the_upstream_and_the_proxy_give_the_same_rows() -> None:
    port = free_port()
    with (
        process(python("benchmarks.peers.servers", "upstream", str(port)), port, OTHER_CORE),
        ProxyProcess(dashscope_url=f"http://127.0.0.1:{port}") as proxy,
    ):
        asked = [body([text(at)]) for at in (1, 2, 1)]
        assert len(one_by_one_ms(port, asked)) == 3
        assert len(one_by_one_ms(proxy.http_port, asked)) == 3
        compatible = [openai_body([text(at)]) for at in (1, 3)]
        assert len(one_by_one_ms(proxy.http_port, compatible, OPENAI_TARGET)) == 2
        assert proxy.stats()["operations"]["embedding"]["upstream_calls"] == 4
        assert len(latencies_ms(proxy.http_port, 4, 0.3)) > 4


def test_scripts_ask_for_all_texts(tmp_path: Path) -> None:
    found = scripts(tmp_path)
    assert set(found) == {"repeat", "new", "ten", "openai", "litellm", "get", "large"}
    assert found["repeat"].read_text().count("text number") == TEXTS
    assert "X-Request-Id" in found["new"].read_text()


def test_the_page_tells_what_was_met_missed_and_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "PICTURE", tmp_path / "picture.svg")
    values = {figures.REPEAT: [0.9, 1.2, 1.1], figures.PARSED: [0.5, 0.6, 0.4]}
    said = report.write(
        values, {"memory, repeat": [70_000.0, 60_000.0], "nginx-cache, repeat": [60_000.0]}, "command", placed(range(4))
    )
    assert f"| {figures.REPEAT.name} | 1.10 (1.00-1.15) | ≥ 1 | met |" in said
    assert f"| {figures.PARSED.name} | 0.50 (0.45-0.55) | ≥ 0.7 | **missed** |" in said
    assert f"| {figures.GRPC.name} | not measured" in said
    assert (tmp_path / "page.md").read_text() == said
    assert "nginx proxy_cache" in (tmp_path / "picture.svg").read_text()


@pytest.mark.parametrize(
    ("cores", "expected", "is_crowded"),
    [
        ([0, 1, 2, 3], ("0", "1", "2,3"), False),
        ([4, 5, 6], ("4", "5", "6"), False),
        ([0, 1], ("0", "1", "1"), True),
        ([3], ("3", "3", "3"), True),
    ],
)
def test_with_fewer_cores_than_wanted_they_are_shared(
    cores: list[int], expected: tuple[str, ...], is_crowded: bool
) -> None:
    where = placed(cores)
    assert (tuple(where), where.is_crowded) == (expected, is_crowded)


def test_the_page_says_who_was_where_and_what_means_little_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "PICTURE", tmp_path / "picture.svg")
    values = {figures.REPEAT: [1.2], figures.WORKERS: [1.1]}
    crowded = report.write(values, {"memory, repeat": [70_000.0]}, "command", placed([0, 1]))
    assert "on core 0, Redis and upstreams on 1, wrk on 1" in crowded
    assert f"| {figures.WORKERS.name}* | 1.10" in crowded
    assert f"| {figures.REPEAT.name} | 1.20" in crowded
    assert "mean little" in crowded
    assert "*" not in report.write(values, {"memory, repeat": [70_000.0]}, "command", placed(range(4))).replace(
        "**", ""
    )


def test_wrk_is_pinned_to_cores_that_there_are() -> None:
    assert inspect.signature(wrk).parameters["cores"].default == PLACED.load
    assert {int(core) for core in PLACED.load.split(",")} <= os.sched_getaffinity(0)
