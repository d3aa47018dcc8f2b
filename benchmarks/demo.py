"""
What an app gains, shown in half a minute: people matched with projects, first straight at the vendors, then cached.

Both SDKs are the vendors' own: dashscope embeds each profile's text, dashvector (over gRPC, its default) stores the
vectors and finds matches. The vendors are simulated, and so are their latencies. Both rounds ask the same in the same
order and differ in nothing but the addresses.

The dashvector SDK takes no port and dials 443, which needs a name and a privileged port (docs/dashvector.md). For a
demo that anybody can start, its check of endpoints is widened to take a port;
``tests/sdk/test_dashvector_namespace.py`` has the unmodified client.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read once, when the library is loaded
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import dashscope
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from benchmarks.profiles import FIELDS, SIDES, Profile, everybody, popularity
from tests.support.proxy_process import ProxyProcess
from tests.vendor_sim.dashvector_clients import sdk_client, sdk_endpoints
from tests.vendor_sim.dashvector_package import dashvector
from tests.vendor_sim.runner import ProcessSim, sim_process

MODEL = "text-embedding-v4"
DIMENSION = 1_024
TOPK = 20
BATCH = 10
SETTLE_S = 2.0  # the default of vector.settle_s
KINDS = {"embedding": "embeddings", "vector-query": "matches", "vector-stats": "statistics", "vector-write": "writes"}
"""The proxy's operations and what they are called here."""


class Visit(NamedTuple):
    """One profile's calls, one after the other."""

    profile: Profile
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """What the app does: stores everybody, lets them look, rewrites some, lets them look again."""

    people: list[Profile]
    acts: tuple[list[Visit], list[Visit]]
    rewritten: list[Profile]

    @property
    def calls(self) -> int:
        """How many calls visitors make in all."""
        return sum(len(visit.kinds) for act in self.acts for visit in act)


@dataclass
class Run:
    """One round."""

    latencies_ms: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    answers: list[Any] = field(default_factory=list)
    vendor_calls: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Note how long a call took."""
        started_s = time.perf_counter()
        yield
        self.latencies_ms[kind].append((time.perf_counter() - started_s) * 1000)


class Failed(Exception):  # noqa: N818  says what it is
    """A vendor's answer was no success."""


def story(users: int, projects: int, visits: int, rewritten: int) -> Story:
    """
    Visits by Zipf's law: each embeds the visitor's text and looks at the matches twice; every tenth sees statistics.

    Halfway through, some profiles are rewritten; who visits afterwards comes with the new text.
    """
    chance = random.Random(1)
    people = everybody(users, projects)
    chance.shuffle(people)
    changed = chance.sample(people, rewritten)
    later = [profile.updated if profile in changed else profile for profile in people]

    def act(cast: list[Profile]) -> list[Visit]:
        visitors = chance.choices(cast, popularity(len(cast)), k=visits // 2)
        looks = ("embedding", "vector-query", "vector-query")
        return [Visit(who, (*looks, "vector-stats") if at % 10 == 0 else looks) for at, who in enumerate(visitors)]

    return Story(people, (act(people), act(later)), [profile.updated for profile in changed])


class App:
    """The app, as the two SDKs let it be written."""

    def __init__(self, client: Any, run: Run) -> None:
        self._client = client
        self._run = run
        self._collections: dict[str, Any] = {}
        self._vectors: dict[Profile, list[float]] = {}

    def embed(self, texts: list[str]) -> list[list[float]]:
        """The texts' embeddings, by DashScope."""
        with self._run.timed("embedding"):
            answer = dashscope.TextEmbedding.call(model=MODEL, input=texts, api_key="sk-demo", dimension=DIMENSION)
        if answer.status_code != 200:
            raise Failed(f"{answer.code}: {answer.message}")
        return [row["embedding"] for row in answer.output["embeddings"]]

    def store(self, people: list[Profile]) -> None:
        """Embed *people* in batches, and keep them in DashVector."""
        for at in range(0, len(people), BATCH):
            batch = people[at : at + BATCH]
            self._vectors.update(zip(batch, self.embed([profile.text for profile in batch]), strict=True))
        for side in SIDES:
            documents = [
                dashvector.Doc(id=profile.id, vector=self._vectors[profile], fields=profile.fields)
                for profile in people
                if profile.side == side
            ]
            if documents:
                with self._run.timed("vector-write"):
                    _checked(self._collections[side].upsert(documents))

    def create(self) -> None:
        """Make both collections."""
        for side in SIDES:
            with self._run.timed("vector-write"):
                _checked(self._client.create(side, DIMENSION, metric="cosine", fields_schema=dict(FIELDS)))
            self._collections[side] = _checked(self._client.get(side))

    def delete(self) -> None:
        """Take both away again."""
        for side in SIDES:
            with self._run.timed("vector-write"):
                _checked(self._client.delete(side))

    def answer(self, kind: str, profile: Profile) -> Any:
        """Make one call; what it came to, without ids of requests."""
        if kind == "embedding":
            return self.embed([profile.text])[0]
        if kind == "vector-query":
            with self._run.timed(kind):
                found = self._collections[profile.others].query(self._vectors[profile], topk=TOPK)
            return [(document.id, document.score, document.fields) for document in _checked(found).output]
        with self._run.timed(kind):
            about = self._collections[profile.others].stats()
        return _checked(about).output.total_doc_count


def _checked(answer: Any) -> Any:
    if answer.code != 0:
        raise Failed(f"{answer.code}: {answer.message}")
    return answer


def play(told: Story, base_url: str, address: str, threads: int, advance: Callable[[int], None], pause_s: float) -> Run:
    """Tell the whole story once; *pause_s* passes after writes, as it does in life."""
    dashscope.base_http_api_url = f"{base_url}/api/v1"
    run = Run()
    with sdk_client("grpc", address) as client, ThreadPoolExecutor(threads) as pool:
        app = App(client, run)

        def visited(visit: Visit) -> list[Any]:
            found = [app.answer(kind, visit.profile) for kind in visit.kinds]
            advance(len(found))
            return found

        app.create()
        for people, act in zip((told.people, told.rewritten), told.acts, strict=True):
            app.store(people)
            time.sleep(pause_s)
            started_s = time.perf_counter()
            run.answers += [answer for answers in pool.map(visited, act) for answer in answers]
            run.wall_s += time.perf_counter() - started_s
        app.delete()
    return run


def vendor_calls(sim: ProcessSim) -> dict[str, int]:
    """What the vendors were asked, by their own count."""
    asked: dict[str, int] = sim.control("GET", "dashvector/stats")["asked"]
    writes = ("create_collection", "upsert_doc", "delete_collection")
    calls = {"embedding": sim.stats["requests"], "vector-query": asked.get("query_doc", 0)}
    calls["vector-write"] = sum(asked.get(name, 0) for name in writes)
    return {**calls, "vector-stats": sum(asked.values()) - calls["vector-query"] - calls["vector-write"]}


def both(
    told: Story, latency_ms: int, vector_latency_ms: int, threads: int, console: Console, settle_s: float = SETTLE_S
) -> tuple[Run, Run, dict[str, Any]]:
    """Both rounds, and the proxy's own statistics by operation; *settle_s* is the proxy's pause after a write."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    jitter = str(latency_ms // 3)
    with (
        tempfile.TemporaryDirectory() as folder,
        sim_process(
            "--no-record", "--latency-ms", str(latency_ms), "--jitter-ms", jitter, "--dashvector-grpc-port", "0"
        ) as sim,
        ProxyProcess(
            dashscope_url=sim.url,
            dashvector_url=sim.url,
            dashvector_grpc_url=f"http://{sim.grpc_address}",
            data_dir=Path(folder),
            env={"DASHCACHE_VECTOR_SETTLE_S": str(settle_s)},
        ) as proxy,
        sdk_endpoints(),
        Progress(*columns, console=console) as progress,
    ):
        sim.control("PUT", "dashvector/settings", {"latency_ms": vector_latency_ms})
        runs = []
        for title, url, address, pause_s in (
            ("straight at the vendors", sim.url, sim.grpc_address, 0.0),
            ("through Dashcache", proxy.http_url, proxy.grpc_address, settle_s + 0.2),
        ):
            bar = progress.add_task(title, total=told.calls)
            before = vendor_calls(sim)
            run = play(told, url, address, threads, lambda steps, bar=bar: progress.advance(bar, steps), pause_s)  # type: ignore[misc]
            run.vendor_calls = {kind: count - before[kind] for kind, count in vendor_calls(sim).items()}
            runs.append(run)
        return runs[0], runs[1], proxy.stats()["operations"]


def summary(direct: Run, cached: Run, stats: dict[str, Any]) -> Table:
    """The two rounds side by side, by kind of call."""
    calls = sum(map(len, direct.latencies_ms.values()))
    table = Table(title=f"{calls} calls, straight at the vendors -> through Dashcache", title_justify="left")
    table.caption, table.caption_justify = "hits of embeddings are texts, of which a call may hold ten", "left"
    for column in ("", "vendor saw", "saved", "hits", "median, ms", "95th perc., ms"):
        table.add_column(column, justify="right" if table.columns else "left")
    for kind, name in KINDS.items():
        before, after = direct.vendor_calls[kind], cached.vendor_calls[kind]
        ratio = stats[kind]["hit_ratio"]
        halves, tails = ([at(run.latencies_ms[kind]) for run in (direct, cached)] for at in (statistics.median, _p95))
        table.add_row(
            name,
            f"{before} -> {after}",
            f"{1 - after / before:.1%}",
            "" if ratio is None else f"{ratio:.1%}",
            "{:.1f} -> {:.1f}".format(*halves),
            "{:.1f} -> {:.1f}".format(*tails),
        )
    return table


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def closing(direct: Run, cached: Run) -> str:
    """What there is to say below the table."""
    before, after = (sum(run.vendor_calls.values()) for run in (direct, cached))
    equal = sum(one == other for one, other in zip(direct.answers, cached.answers, strict=True))
    saved = f"calls saved {1 - after / before:.1%} ({before} -> {after})"
    times = f"all visits {direct.wall_s:.1f} s -> {cached.wall_s:.1f} s"
    return f"{saved}, {times}, equal answers {equal}/{len(direct.answers)}"


def main() -> int:
    """Play it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--projects", type=int, default=30)
    parser.add_argument("--visits", type=int, default=320)
    parser.add_argument("--rewritten", type=int, default=4)
    parser.add_argument("--latency-ms", type=int, default=120, help="of the simulated DashScope")
    parser.add_argument("--vector-latency-ms", type=int, default=40, help="of the simulated DashVector")
    parser.add_argument("--threads", type=int, default=8)
    given = parser.parse_args()
    console = Console(stderr=False)
    console.print(
        f"{given.users} users and {given.projects} projects; both SDKs are real, the vendors simulated "
        f"(DashScope {given.latency_ms} ms, DashVector {given.vector_latency_ms} ms)\n"
        "dashvector dials fixed ports: its check of endpoints is widened here so that no root is needed",
        highlight=False,
        soft_wrap=True,
    )
    told = story(given.users, given.projects, given.visits, given.rewritten)
    direct, cached, stats = both(told, given.latency_ms, given.vector_latency_ms, given.threads, console)
    console.print(summary(direct, cached, stats))
    console.print(closing(direct, cached), highlight=False, soft_wrap=True)
    return 0 if cached.answers == direct.answers else 1


if __name__ == "__main__":
    sys.exit(main())
