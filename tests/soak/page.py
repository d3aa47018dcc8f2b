"""``docs/soak.md``: the figures of one soak."""

import os
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.soak.load import NO_BREACH
from tests.soak.soak import Soaked
from tests.soak.watch import MIB
from tests.support.open_loop import Report, Sample

PAGE = Path(__file__).parents[2] / "docs" / "soak.md"

HEAD = """# Soak

Two replicas with two workers each, one real redis-server, and the simulated vendors (HTTP and gRPC), with a line that
makes trouble to each of them; a fixed rate of calls that does not slow down when the answers do; a fault every few
seconds. Every answer is compared with what the vendor would say: bytes (ids apart), and for vector queries the version
of each document against every write that was acknowledged. How: `tests/soak`. Written by:

    {command}

{machine}.

**{verdict}**

"""
EXPLAINED = """
What is no breach, and why:

- *vendor's own*: the vendor was made to answer errors, or wrong answers, and the client got them as they were; never
  from the cache, and only while that fault was on.
- *inevitable: upstream line*: the vendor's answer broke off, and nobody has the rest of it. A read that died before its
  first byte on a kept connection is asked once more; a write never is.
- *inevitable: worker killed*: a worker of replica B got SIGKILL with the request in its hands, and nobody is left to
  answer.
- *inevitable: worker hung*: a worker of replica B was stopped (SIGSTOP) and replaced, with the request in its hands.
- *inevitable: silent call*: the vendor never answered this very call. Others that ask for the same do not wait for it:
  of each kind (dialect, protocol) no more calls end so than the vendor left unanswered, as it counted them itself.
- *left*: the client itself went away before its answer.
- Hits older than a write that Redis could not be told of ({excused} here): within their lifetime, and only through
  the replica that did not see the write, until Redis was told.
"""


def page(soaked: Soaked, command: str) -> str:
    """The whole page."""
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, Linux, everything on loopback"
    count = len(soaked.breaches)
    verdict = f"{count} breaches." if count else "No wrong answer, no error that is not the vendor's own, no growth."
    parts = [HEAD.format(command=command, machine=machine, verdict=verdict)]
    parts += [
        *_calls(soaked),
        EXPLAINED.format(excused=soaked.excused),
        *_faults(soaked),
        *_untried(soaked),
        *_processes(soaked),
    ]
    if soaked.breaches:
        parts += ["\n## Breaches\n\n", *(f"- {breach}\n" for breach in soaked.breaches[:50])]
    return "".join(parts)


def _calls(soaked: Soaked) -> Iterable[str]:
    report, verdicts = soaked.report, soaked.verdicts
    wrong = sum(count for verdict, count in verdicts.items() if verdict.startswith("wrong"))
    errors = sum(count for verdict, count in verdicts.items() if not verdict.startswith(("wrong", *NO_BREACH)))
    yield "| | |\n|---|---|\n"
    yield f"| calls | {report.count:,} in {soaked.seconds:g} s at {soaked.rate:g}/s, seed {soaked.seed} |\n"
    yield f"| wrong answers | {wrong} |\n| errors | {errors} |\n"
    for verdict, count in sorted(verdicts.items()):
        if verdict.startswith(NO_BREACH):
            yield f"| {verdict} | {count:,} |\n"
    yield f"| latency, ms | {_latency(report)} |\n"
    yield f"| generator late by at most | {report.worst_lag_s * 1000:.0f} ms |\n"
    yield f"| restarts of replica B | {soaked.restarts} |\n"
    yield "\n| call | calls | hits | latency, ms |\n|---|---|---|---|\n"
    kinds: dict[str, list[Sample]] = defaultdict(list)
    for sample in report.samples:
        kinds[soaked.kinds[sample.index]].append(sample)
    for kind, samples in sorted(kinds.items()):
        part = Report(report.rate, samples)
        cached = [sample for sample in samples if sample.outcome.cached is not None]
        hits = f"{part.cached / len(cached):.1%}" if part.cached else ""
        yield f"| {kind} | {part.count:,} | {hits} | {_latency(part)} |\n"


def _latency(report: Report) -> str:
    return " / ".join(f"{report.latency(percent) * 1000:.0f}" for percent in (50, 99, 100)) + " (p50, p99, max)"


def _faults(soaked: Soaked) -> Iterable[str]:
    yield "\n## Faults\n\nCalls that were planned while the fault was on.\n\n"
    yield "| fault | times | calls | hits | not the vendor's right answer | p99, max, ms |\n|---|---|---|---|---|---|\n"
    found: dict[str, tuple[int, list[Sample]]] = {}
    for spell in soaked.history.spells:
        times, samples = found.get(spell.name, (0, []))
        ended_s = spell.ended_s or spell.began_s
        during = soaked.report.between(spell.began_s - soaked.began_s, ended_s - soaked.began_s).samples
        found[spell.name] = (times + 1, samples + during)
    for name, (times, samples) in sorted(found.items()):
        part = Report(soaked.rate, samples)
        others: Counter[str] = part.errors
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(others.items()))
        share = f"{part.cached / part.count:.0%}" if part.count else ""
        slow = f"{part.latency(99) * 1000:.0f}, {part.latency(100) * 1000:.0f}" if part.count else ""
        yield f"| {name} | {times} | {part.count:,} | {share} | {told} | {slow} |\n"


def _untried(soaked: Soaked) -> Iterable[str]:
    if soaked.untried:
        yield f"\nNot tried: {soaked.untried}.\n"


def _processes(soaked: Soaked) -> Iterable[str]:
    yield "\n## Processes\n\nMedian of the first third of the time, and of the last. Faults of processes strike B "
    yield "alone, whose figures start anew then; A lives from beginning to end, and is judged.\n\n"
    yield "| process | resident, MiB | open files | sockets | threads |\n|---|---|---|---|---|\n"
    for one in soaked.series:
        rss = one.thirds(lambda sample: sample.rss)
        rest = (
            one.thirds(lambda sample: sample.files),
            one.thirds(lambda sample: sample.sockets),
            one.thirds(lambda sample: sample.threads),
        )
        cells = " | ".join(f"{first:.0f} → {last:.0f}" for first, last in rest)
        yield f"| {one.role} | {rss[0] / MIB:.1f} → {rss[1] / MIB:.1f} | {cells} |\n"
    if soaked.redis_bytes:
        third = max(1, len(soaked.redis_bytes) // 3)
        first, last = (max(part) / MIB for part in (soaked.redis_bytes[:third], soaked.redis_bytes[-third:]))
        yield f"\nRedis' memory at most: {first:.1f} MiB in the first third, {last:.1f} MiB in the last (limit 64).\n"
    yield f"Sockets per worker once all clients have gone: {', '.join(str(one.sockets) for one in soaked.at_rest)}.\n"
