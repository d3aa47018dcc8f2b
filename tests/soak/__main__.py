"""
A soak by hand: ``python -m tests.soak --seconds 600 --seed 7``. Writes ``docs/soak.md``; 1 when a promise was broken.

Here and not among the benchmarks: it judges, as a test does, and is made of the tests' rig; its figures come second.
"""

import argparse
import asyncio
import secrets
from pathlib import Path

from tests.soak.page import PAGE, page
from tests.soak.soak import soak


def main() -> int:
    """Soak, print, write; the exit status."""
    parser = argparse.ArgumentParser(prog="tests.soak", description="Load and faults, every answer compared.")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--rate", type=float, default=100, help="calls a second")
    parser.add_argument("--every", type=float, default=10, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    parser.add_argument("--only", default="", help="only faults with this in their names")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the figures go")
    given = parser.parse_args()
    soaked = asyncio.run(soak(given.seconds, given.rate, given.every, given.seed, given.only))
    command = f"python -m tests.soak --seconds {given.seconds:g} --rate {given.rate:g} --every {given.every:g}"
    command += f" --seed {given.seed}" + (f" --only {given.only!r}" if given.only else "")
    text = page(soaked, command)
    given.page.write_text(text)
    print(text)
    return int(bool(soaked.breaches))


if __name__ == "__main__":
    raise SystemExit(main())
