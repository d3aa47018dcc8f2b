"""
``docs/reliability.md``: every promise, the tests that show it, and what they showed last.

``make test-faults`` runs the tests that are named after a promise (``test_r1_...``, ``test_c3_...``) and hands their
report to this program, which writes the page anew. A test tells a figure by ``record_property("figure", "...")``.

    python -m tests.reliability_page report.xml
"""

import os
import platform
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
NAMED = re.compile(r"test_([rcs]\d+[a-e]?)_")
"""How the tests of a row are named."""

HEAD = """# Reliability

What is promised, the tests that show it, and what they showed when `make test-faults` wrote this page ({where}).
A promise without a test is marked, and is not claimed. The tests of a row are those named after it: all of R1 are
run by `pytest --rows -k test_r1_`.
"""

SECTIONS = {
    "When things break": {
        "R1": "A dead Redis is invisible: no error, no wrong answer, hits soon after its return",
        "R2": "A hung Redis costs one deadline, briefly",
        "R3": "Every other kind of trouble with Redis is a miss, never an error",
        "R4": "A Redis that can read but not write goes on serving hits",
        "R5": "Failing open does not fell the vendor: calls in flight are capped, the excess is told so quickly",
        "R6a": "Concurrent misses of one item are one call, in one process and over all of them",
        "R6b": "The first caller is not special: when it leaves, the others get their answer",
        "R6c": "A failed flight neither spreads nor stampedes",
        "R6d": "Answers that cannot be kept do not make people queue",
        "R6e": "A process that is killed while it fetches delays others by its lease, and never blocks them",
        "R7a": "A stale answer is served only in its window and for its causes",
        "R7b": "Refreshes cannot storm",
        "R7c": "A refresh uses the credential of the request that set it off, from memory only",
        "R8": "Who leaves is let go: the upstream sees it, nothing stays behind",
        "R9": "Memory is bounded: large answers and uploads flow through, plans, names and labels are capped",
        "R10": "The bypass switch works when nothing else does",
        "R11": "Restarts and reloads are quiet; of a killed worker, only calls under way at the kill may fail",
        "R12": "Upstream connections may close at any moment: reads succeed, writes are never sent twice",
        "R13": "Bodies that are large, or of many members, hold up small hits by 0.15 s at most at the 99th percentile",
        "R14": "The breaker judges Redis, not clients",
        "R15": "A half-open breaker lets one through",
        "R16": "Steps of the clock change nothing",
        "R17": "A request that the vendor never answers is its client's trouble: others who ask the same go on after "
        "the lock time, in every process",
        "R18": "A worker or an embedded Redis that hangs is reported within 5 s and replaced, after 15 s and 20 s; "
        "an order that it did not confirm says so",
        "R19": "A full, read-only or emptied folder, for data or for metrics, costs what is kept in it, which is said, "
        "and no request; a start that it makes impossible says why",
        "R20": "A request that comes back to the proxy that sent it is refused at once, and the log says where it went",
        "R21": "No stranger can hold what others need: slots of an upstream, the admin listener, memory (what is held "
        "before it is answered has one budget)",
        "R22": "A Redis whose name moves while all connections stay open is found: entries are kept there within 5 s, "
        "what the old one did not take is told, and the log has one line",
    },
    "Vector queries, writes and purges": {
        "C1": "An answer that was in flight across a write is not kept",
        "C2": "A write that is acknowledged but not visible yet is not frozen into the cache",
        "C3": "What Redis could not be told is not lost",
        "C4": "Two replicas agree",
        "C5": "A purge beats what is being stored",
        "C6": "A write counts whatever door it takes",
        "C7": "A write of unknown outcome counts",
        "C8": "A Redis that lost or set back its state costs hits of whoever wrote, and gives no answer of before",
        "C9": "Flights do not cross identities",
        "C10": "A restart forgets nothing that matters",
        "C11": "What is not seen is bounded by the lifetime",
        "C12": "A collection that was dropped and made anew shows nothing old",
        "C13": "A Redis that went back is noticed by every process, and gives no answer of before a write or a refusal",
        "C14": "A write of unknown outcome that the vendor executes late is not outlived by an older answer, for "
        "`vector.unknown_settle_s`",
        "C15": "A replica with another secret is refused the Redis of the first, loudly, and serves without it; a "
        "secret that is rotated as described gives no vector answer of before a write, through either side",
        "C16": "An answer to a request that was made smaller, or for several clients, is shown to nobody, unless it is "
        "an error that speaks of nobody's items",
        "C17": "The last word about a mode wins, over replicas and restarts; when it ends, the one before it holds",
    },
    "Security": {
        "S1": "No answer crosses credentials",
        "S2": "Everything that can change an answer is in its key, and the key is made of what is sent",
        "S3": "Errors are never stored",
        "S4": "What readers could end at different places gets 400 (requests) or 502 (answers); its connection ends",
        "S5": "It is no open proxy",
        "S6": "Hop-by-hop lines are dropped by rule",
        "S7": "Forwarding headers are not believed",
        "S8": "No answer is split",
        "S9": "Entries from Redis are not trusted",
        "S10": "Keys do not collide",
        "S11": "Secrets stay out of logs, metrics, answers and Redis",
        "S12": "The admin API is closed: without the token, where one is set, no route answers; elsewhere no page of "
        "another site; a change is one JSON order; exposed without a token it does not start; the data port has "
        "none of it",
        "S13": "Slow clients cost little: heads, bodies and readers that drip or stop end after their time",
        "S14": "Bombs do not go off: what is compressed passes unopened; chunks, lines and trailers have their limits",
        "S15": "The gRPC port stands HTTP/2 floods, and an odd head ends no call but its own",
        "S16": "Timing tells tenants nothing of each other",
        "S17": "A credential that the vendor has refused gets no hits",
        "S18": "Least power in Redis",
        "S19": "Libraries below known-good versions are refused",
        "S20": "Upstreams parse the head and body that were meant, no connection is kept with bytes unread or unsent",
        "S21": "Nobody voids by accident: not by OPTIONS or HEAD, without a credential, with a refused one, or by a "
        "write that was not sent whole",
    },
}

ROWS = {row for promises in SECTIONS.values() for row in promises}


@dataclass(slots=True)
class Shown:
    """What the tests of one row showed; *files* counts their functions."""

    tests: set[tuple[str, str]] = field(default_factory=set)
    results: Counter[str] = field(default_factory=Counter)
    figures: dict[str, None] = field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        """Whether any test did."""
        return self.results["failed"] > 0

    def cells(self) -> tuple[str, str, str]:
        """Tests by file, results, figures."""
        files = Counter(file for file, _ in self.tests)
        links = (f"[{file.removeprefix('tests/')}](../{file}) ({count})" for file, count in sorted(files.items()))
        words = (("passed", "passed"), ("failed", "**FAILED**"), ("skipped", "skipped"))
        results = ", ".join(f"{self.results[result]} {word}" for result, word in words if self.results[result])
        return "<br>".join(links), results, "<br>".join(each.replace("|", "\\|") for each in self.figures)


def read(report: Path) -> dict[str, Shown]:
    """What *report* (JUnit's XML) says of each row, by its name in the page."""
    rows: dict[str, Shown] = defaultdict(Shown)
    for case in ET.parse(report).iter("testcase"):
        name = case.get("name", "")
        match = NAMED.match(name)
        if match is None:
            continue
        row = rows[_row(match[1])]
        row.tests.add((_file(case.get("classname", "")), name.partition("[")[0]))
        row.results[_result(case)] += 1
        row.figures |= {each.get("value", ""): None for each in case.iter("property") if each.get("name") == "figure"}
    return rows


def _row(named: str) -> str:
    """The row that *named* ("r6a") belongs to: a part of what the table has as a whole, to the whole."""
    row = named[0].upper() + named[1:]
    return row if row in ROWS else row.rstrip("abcde")


def _file(module: str) -> str:
    """The file of a test; a class in it is left out."""
    return "/".join(part for part in module.split(".") if not part.startswith("Test")) + ".py"


def _result(case: ET.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def page(rows: dict[str, Shown], where: str) -> str:
    """
    The whole page.

    Raises:
        LookupError: a test is named after a row that is not in the table.
    """
    if strangers := rows.keys() - ROWS:
        raise LookupError(f"tests are named after rows that are not in the table: {', '.join(sorted(strangers))}")
    parts = [HEAD.format(where=where)]
    for title, promises in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| | promise | tests | last result | figures |\n|---|---|---|---|---|\n")
        for row, promise in promises.items():
            cells = rows[row].cells() if row in rows else ("**none yet**", "-", "")
            parts.append(f"| {row} | {promise} | {' | '.join(cells)} |\n")
    return "".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page from the report named in *arguments*; 1 if a test of a row failed."""
    rows = read(Path(arguments[0]))
    PAGE.write_text(page(rows, f"Python {platform.python_version()}, {os.cpu_count()} cores, everything on loopback"))
    return int(any(row.has_failed for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
