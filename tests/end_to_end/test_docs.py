"""Commands, links and lists in the documents are correct.

The examples in the documents run as separate tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RULES = ROOT / "docs" / "design" / "rules.md"

TESTS = "python -m pip install -e '.[test]' && python -m pytest -n 2 --dist loadfile"
MAIN_JOB = "python -m pip install -e . && python -m npstream demo"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("command", [TESTS, MAIN_JOB])
def test_ci_runs_the_commands_in_the_readme(command):
    for file in ("README.md", ".ci/run"):
        lines = [line.strip() for line in (ROOT / file).read_text().splitlines()]
        assert command in lines, file


def test_ci_deselects_tests_that_exist():
    script = (ROOT / ".ci" / "run").read_text()
    deselected = re.findall(r"--deselect=(\S+)::(\w+)", script)
    assert deselected
    for file, name in deselected:
        assert f"def {name}(" in (ROOT / file).read_text(), name


def test_the_rules_page_lists_all_environment_variables():
    used = {
        name
        for path in (ROOT / "npstream").rglob("*.py")
        for name in re.findall(r'"(NPSTREAM_\w+)"', path.read_text())
    }
    assert used == set(re.findall(r"^\| `(NPSTREAM_\w+)`", RULES.read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_python_code_fences_have_a_tested_language(document):
    for block in pages.parse(document.read_text()):
        assert block.language in ("", "console", "json", "python", "sh", "text"), block
        for option in block.options:
            assert block.language == "python", block
            assert re.fullmatch(r"continuation|file=\S+|fixture:\w+", option), block


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_relative_links_exist(document):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []
