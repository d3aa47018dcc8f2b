"""The page of promises is made from the names of the tests, from what they came to, and from the figures they tell."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability_page import ROWS, SECTIONS, page, read

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_r1_first(record_property):
    record_property("figure", "7 ms | worst")
    record_property("other", "not for the page")

@pytest.mark.parametrize("which", [1, 2])
def test_r1_second(which, record_property):
    record_property("figure", "7 ms | worst")

@pytest.mark.slow
def test_r6a_slow(): ...

def test_s14b_a_part_of_what_the_table_has_as_a_whole(): ...

class TestThings:
    def test_c5_fails(self):
        assert False

def test_s3_skips():
    pytest.skip("not here")

def test_redis_is_no_row(): ...
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JUnit's XML as pytest itself writes it, of the tests that the option chooses."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "test_rows.py").write_text(TESTS)
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "pytest.ini").write_text(
        "[pytest]\npythonpath = {ROOT}\nmarkers = slow\naddopts = -m 'not slow'".replace("{ROOT}", str(ROOT))
    )
    out = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--rows", "-p", "no:randomly", f"--junitxml={out}", str(folder)]
    subprocess.run(command, cwd=folder, check=False, capture_output=True)
    return out


def line(text: str, row: str) -> list[str]:
    (found,) = (line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in found.replace("\\|", "¦").split("|")[3:-1]]


def test_a_row_has_its_tests_results_and_figures(report: Path) -> None:
    text = page(read(report), "here")
    assert line(text, "R1") == ["[test_rows.py](../test_rows.py) (2)", "3 passed", "7 ms ¦ worst"]
    assert line(text, "R6a") == ["[test_rows.py](../test_rows.py) (1)", "1 passed", ""]
    assert line(text, "S14")[1] == "1 passed"
    assert line(text, "C5") == ["[test_rows.py](../test_rows.py) (1)", "1 **FAILED**", ""]
    assert line(text, "S3")[1] == "1 skipped"


def test_a_row_without_tests_is_marked(report: Path) -> None:
    rows = read(report)
    assert set(rows) == {"R1", "R6a", "S14", "C5", "S3"}
    text = page(rows, "here")
    assert text.count("**none yet**") == len(ROWS) - len(rows)
    assert line(text, "R2") == ["**none yet**", "-", ""]
    for promises in SECTIONS.values():
        for row, promise in promises.items():
            assert f"\n| {row} | {promise} | " in text


def test_a_test_named_after_a_row_that_does_not_exist_is_told(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text('<testsuite><testcase name="test_r99_x" classname="tests.test_x"/></testsuite>')
    with pytest.raises(LookupError, match="R99"):
        page(read(report), "here")
