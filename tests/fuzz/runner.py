"""
Runs targets under atheris (libFuzzer): ``python -m tests.fuzz.runner --seconds 60 entry wire``.

A target is a module of this folder with ``seeds()`` and ``one_input(data)``, and knows nothing of atheris. Each runs in
a process of its own: libFuzzer ends the process that it runs in. What a run has learnt stays in ``.fuzz/corpus`` and is
where the next one starts; an input that fails is written to ``.fuzz/found`` and shown again with ``--input FILE``.
"""

import argparse
import hashlib
import importlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

TARGETS = ("embedding_request", "embedding_answer", "dashvector_http", "dashvector_grpc", "wire", "entry")
FOLDER = Path(".fuzz")
_MOST_BYTES = 4_096
_MOST_MEGABYTES = 2_048


def main() -> int:
    """All targets asked for, one after the other; the number of those that failed."""
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing.")
    parser.add_argument("targets", nargs="*", default=TARGETS, help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--input", type=Path, help="run this file once, without atheris")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.input:
        (name,) = options.targets
        _module(name).one_input(options.input.read_bytes())
        return 0
    if options.alone:
        return _run(options.targets[0], options.seconds)
    failed = 0
    for name in options.targets:
        print(f"--- {name}, {options.seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz.runner", name, "--alone", "--seconds", str(options.seconds)]
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


def _module(name: str) -> Any:
    return importlib.import_module(f"tests.fuzz.{name}")


def _run(name: str, seconds: int) -> int:
    import atheris  # noqa: PLC0415  in an environment of its own; the tests import this module without it

    with atheris.instrument_imports(include=["proxy"]):
        module = _module(name)
    corpus, found = FOLDER / "corpus" / name, FOLDER / "found" / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in module.seeds():
        if len(seed) <= _MOST_BYTES:
            (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    settings = (
        f"-max_total_time={seconds}",
        f"-max_len={_MOST_BYTES}",
        f"-rss_limit_mb={_MOST_MEGABYTES}",
        "-timeout=10",
        "-print_final_stats=1",
        f"-artifact_prefix={found}/",
    )
    own = getattr(module, "mutated", None)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """The target's own changes, which keep the form, and libFuzzer's, which do not, in turn."""
        chance = random.Random(seed)
        changed = own(data, chance) if own is not None and chance.random() < 0.6 else atheris.Mutate(data, max_size)
        return bytes(changed[:max_size])

    atheris.Setup([name, *settings, str(corpus)], module.one_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
