"""
What an app gains, shown in half a minute: the vendor's simulator, the proxy, and the real dashscope SDK.

The texts are real and short: first sentences of the documentation that ships with Python. The SDK asks for them with a
skew in popularity, first straight at the vendor, then through the proxy; nothing else differs but the base URL.
"""

import argparse
import inspect
import pkgutil
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import dashscope
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.support.proxy_process import ProxyProcess
from tests.vendor_sim.runner import ProcessSim, sim_process

MODEL = "text-embedding-v4"
MODULES = (
    "asyncio",
    "collections",
    "email",
    "http",
    "json",
    "logging",
    "os",
    "pathlib",
    "re",
    "socket",
    "ssl",
    "statistics",
)


@dataclass
class Run:
    """One round of calls."""

    latencies_ms: list[float] = field(default_factory=list)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0
    vendor_calls: int = 0
    wall_s: float = 0.0


def sentences(wanted: int) -> list[str]:
    """The first sentences of docstrings of Python's own library, each once."""
    found: dict[str, None] = {}
    for name in MODULES:
        for text in _docstrings(name):
            first = " ".join(text.split(". ")[0].split())
            if 20 <= len(first) <= 200:
                found[first] = None
    return sorted(found)[:wanted] if len(found) >= wanted else sorted(found)


def _docstrings(module_name: str) -> Iterator[str]:
    module = import_module(module_name)
    modules = [module]
    if hasattr(module, "__path__"):
        inner = (info.name for info in pkgutil.iter_modules(module.__path__) if not info.name.startswith("__"))
        modules += [import_module(f"{module_name}.{name}") for name in inner if "windows" not in name]
    for member in modules:
        for _, value in inspect.getmembers(member, lambda value: inspect.isclass(value) or inspect.isroutine(value)):
            yield inspect.getdoc(value) or ""
            if inspect.isclass(value):
                yield from (inspect.getdoc(method) or "" for _, method in inspect.getmembers(value, inspect.isroutine))


def ask_all(base_url: str, asked: list[str], advance: Callable[[], None], threads: int) -> Run:
    """Ask for each text with the SDK, *threads* at a time."""
    dashscope.base_http_api_url = f"{base_url}/api/v1"
    run = Run()

    def ask(text: str) -> None:
        started_s = time.perf_counter()
        answer = dashscope.TextEmbedding.call(model=MODEL, input=text, api_key="sk-demo")
        run.latencies_ms.append((time.perf_counter() - started_s) * 1000)
        if answer.status_code == 200:
            run.vectors[text] = answer.output["embeddings"][0]["embedding"]
        else:
            run.failed += 1
        advance()

    started_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, asked))
    run.wall_s = time.perf_counter() - started_s
    return run


def play(
    texts: list[str], calls: int, latency_ms: int, threads: int, console: Console
) -> tuple[Run, Run, dict[str, float]]:
    """Both rounds; the second one's statistics are the proxy's own."""
    asked = random.Random(1).choices(texts, [1 / rank for rank in range(1, len(texts) + 1)], k=calls)
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        sim_process("--latency-ms", str(latency_ms), "--jitter-ms", str(latency_ms // 3)) as sim,
        ProxyProcess(dashscope_url=sim.url, data_dir=Path(folder)) as proxy,
        Progress(*columns, console=console) as progress,
    ):
        rounds = []
        for title, url in (("straight at the vendor", sim.url), ("through Dashcache", proxy.http_url)):
            bar = progress.add_task(title, total=calls)
            before = vendor_calls(sim)
            run = ask_all(url, asked, lambda bar=bar: progress.advance(bar), threads)  # type: ignore[misc]
            run.vendor_calls = vendor_calls(sim) - before
            rounds.append(run)
        embedding = proxy.stats()["operations"]["embedding"]
    return rounds[0], rounds[1], embedding


def vendor_calls(sim: ProcessSim) -> int:
    """How many requests the simulator has answered."""
    return int(sim.stats["requests"])


def summary(direct: Run, cached: Run, stats: dict[str, float]) -> Table:
    """The two rounds side by side."""
    table = Table(
        title=f"{len(direct.latencies_ms)} calls for {len(direct.vectors)} distinct texts", title_justify="left"
    )
    for column in ("", "vendor", "Dashcache"):
        table.add_column(column, justify="right" if column else "left")

    def row(name: str, show: Callable[[Run], str]) -> None:
        table.add_row(name, show(direct), show(cached))

    row("calls the vendor saw", lambda run: str(run.vendor_calls))
    row("median latency", lambda run: f"{statistics.median(run.latencies_ms):.1f} ms")
    row("95th percentile", lambda run: f"{statistics.quantiles(run.latencies_ms, n=20)[-1]:.1f} ms")
    row("all calls together", lambda run: f"{run.wall_s:.1f} s")
    row("failed", lambda run: str(run.failed))
    table.add_row("calls saved", "", f"{1 - cached.vendor_calls / direct.vendor_calls:.1%}")
    table.add_row("hit ratio", "", f"{stats['hit_ratio']:.1%}")
    table.add_row(
        "equal vectors", "", f"{sum(cached.vectors[t] == v for t, v in direct.vectors.items())}/{len(direct.vectors)}"
    )
    return table


def main() -> int:
    """Play it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--calls", type=int, default=1_500)
    parser.add_argument("--latency-ms", type=int, default=120, help="of the simulated vendor")
    parser.add_argument("--threads", type=int, default=16)
    given = parser.parse_args()
    console = Console(stderr=False)
    direct, cached, stats = play(sentences(given.texts), given.calls, given.latency_ms, given.threads, console)
    console.print(summary(direct, cached, stats))
    return 1 if cached.failed or cached.vectors != direct.vectors else 0


if __name__ == "__main__":
    sys.exit(main())
