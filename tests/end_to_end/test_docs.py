"""The documents say what is so: their commands, links and examples.

The examples themselves run as tests of their own, collected from the documents.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RULES = ROOT / "docs" / "design" / "rules.md"

TESTS = "python -m pip install -e '.[test]' && python -m pytest -n 2 --dist loadfile"
MAIN_JOB = "python -m pip install -e . && python -m npstream demo"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("command", [TESTS, MAIN_JOB])
def test_ci_runs_the_commands_of_the_readme(command):
    for file in ("README.md", ".ci/run"):
        lines = [line.strip() for line in (ROOT / file).read_text().splitlines()]
        assert command in lines, file


def test_one_page_lists_the_environment_variables():
    used = {
        name
        for path in (ROOT / "npstream").rglob("*.py")
        for name in re.findall(r'"(NPSTREAM_\w+)"', path.read_text())
    }
    assert used == set(re.findall(r"^\| `(NPSTREAM_\w+)`", RULES.read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_python_fence_runs(document):
    fences = re.findall(r"^ *```(\S.*)$", document.read_text(), re.MULTILINE)
    assert {fence for fence in fences if fence.startswith("py")} <= {
        "python",
        "python continuation",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []
