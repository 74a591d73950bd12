"""Commands, links and lists in the documents are correct.

The examples in the documents run as separate tests.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

import npstream

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

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


@pytest.mark.parametrize("page", ["design/rules.md", "operations.md"])
def test_pages_list_all_environment_variables(page):
    text = (ROOT / "docs" / page).read_text()
    used = {
        name
        for path in (ROOT / "npstream").rglob("*.py")
        for name in re.findall(r'"(NPSTREAM_\w+)"', path.read_text())
    }
    assert used == set(re.findall(r"^\| `(NPSTREAM_\w+)`", text, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_python_code_fences_have_a_tested_language(document):
    for block in pages.parse(document.read_text()):
        languages = ("", "console", "json", "python", "sh", "text", "{eval-rst}")
        assert block.language in languages, block
        for option in block.options:
            assert block.language == "python", block
            assert re.fullmatch(r"continuation|file=\S+|fixture:\w+", option), block


def anchors(document: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_relative_links_exist(document):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_reference_has_every_public_object():
    pages_of_reference = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    listed = set(
        re.findall(r"^\.\. auto\w+:: npstream\.([\w.]+)$", pages_of_reference, re.MULTILINE)
    )
    modules = {"cache", "errors", "tokens"}
    expected = set(npstream.__all__) - modules
    for name in [*modules, "streaming", "testing"]:
        module = importlib.import_module(f"npstream.{name}")
        expected |= {f"{name}.{member}" for member in module.__all__}
    assert expected - {"streaming.base"} <= listed


def test_the_site_needs_no_network():
    settings = (ROOT / "docs" / "conf.py").read_text()
    assert "http" not in settings
    assert "python -m sphinx -W" in (ROOT / ".ci" / "run").read_text()


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    images = ROOT / "docs" / "images"
    subprocess.run([sys.executable, images / "draw.py", tmp_path], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(drawn) == 7
    assert drawn == {path.name: path.read_text() for path in images.glob("*.svg")}
