"""Commands, links and lists in the documents are correct.

The examples in the documents run as separate tests.
"""

from __future__ import annotations

import argparse
import configparser
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pages
import pytest

import npstream
from npstream.commands.parser import build_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [ROOT / "CHANGELOG.md", *DOCUMENTS, *sorted((ROOT / "docs").rglob("*.ipynb"))]

SHELL_BLOCKS = {
    "README.md": ["installs npstream", "installs npstream"],
    "docs/clusters.md": ["installs npstream"],
    "docs/command-line.md": ["needs a bucket"],
    "docs/contributing.md": [
        "installs npstream",
        "runs the tests",
        "is CI itself",
        "installs npstream",
        "is CI itself",
        "writes the pages that are tested",
        "takes a minute; a step of .ci/run",
        "needs the network; tests/end_to_end/test_links.py runs the script",
        "writes the notebooks and pictures that are tested",
        "needs root",
    ],
    "docs/exploring.md": ["needs a browser"],
    "docs/guides/launch.md": ["needs several machines", "tests/end_to_end/test_launch.py runs it"],
    "docs/peers.md": ["makes eight environments"],
    "docs/releasing.md": ["a step of .ci/run"],
    "docs/streaming.md": ["tests/streaming runs it"],
    "docs/testing.md": ["installs npstream"],
    "docs/tutorial.md": ["installs npstream"],
}
"""Page -> why each of its ``sh`` blocks does not run in the tests; `console` blocks do."""

TESTS = "python -m pip install -e '.[test]' && python -m pytest -n 2 --dist loadfile"
DEMO = "python -m pip install -e . && python -m npstream demo"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("command", [TESTS, DEMO])
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
def test_code_blocks_have_known_languages_and_options(document):
    for block in pages.parse(document.read_text()):
        languages = ("", "console", "json", "python", "sh", "text", "{eval-rst}")
        assert block.language in languages, block
        for option in block.options:
            assert block.language == "python", block
            assert re.fullmatch(r"continuation|(file=|fixture:|needs:)\S+", option), block


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_examples_print_values_instead_of_assertions(document):
    for block in pages.parse(document.read_text()):
        if block.language == "python":
            assert not re.search(r"^\s*(assert |with pytest\.raises)", block.text, re.MULTILINE)


def shell_blocks(document: Path) -> list[pages.Block]:
    return [block for block in pages.parse(document.read_text()) if block.language == "sh"]


def test_blocks_of_shell_commands_that_do_not_run_have_a_reason():
    blocks = {relative(document): len(shell_blocks(document)) for document in DOCUMENTS}
    reasons = {page: len(texts) for page, texts in SHELL_BLOCKS.items()}
    assert {page: count for page, count in blocks.items() if count} == reasons


@pytest.mark.parametrize("page", SHELL_BLOCKS)
def test_shell_commands_are_correct_as_far_as_they_can_be_checked(page):
    """Syntax, options of npstream, extras, scripts and modules; the commands do not run."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    for block in shell_blocks(ROOT / page):
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for command in re.split(r"\n|&&", block.text.replace("\\\n", " ")):
            words = shlex.split(command, comments=True)
            for name in re.findall(r"(?:npstream|^\.|[ '\"]\.)\[([\w,-]+)\]", command):
                assert set(name.split(",")) <= extras, command
            if words[:1] == ["npstream"]:
                arguments = words[1 : words.index(">") if ">" in words else None]
                assert isinstance(build_parser().parse_args(arguments), argparse.Namespace)
            if words[:1] in (["python"], ["bash"]) and words[1] == "-m":
                assert importlib.util.find_spec(words[2]), command
            elif words[:1] in (["python"], ["bash"]):
                assert (ROOT / words[1]).exists(), command
            for path in (word for word in words if word.startswith(("tests/", "docs/"))):
                assert (ROOT / path).exists(), command


def text_of(document: Path) -> str:
    """Return a page, or the text of a notebook, without blocks of code."""
    text = document.read_text()
    if document.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", text_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", LINKED, ids=relative)
def test_relative_links_exist(document):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text_of(document)):
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
    # `streaming.base` is a module. It has the classes of `streaming` under Streaming's own paths.
    assert expected - {"streaming.base"} <= listed


def test_the_site_needs_no_network_and_ci_builds_it():
    settings = (ROOT / "docs" / "conf.py").read_text()
    assert "http" not in settings
    assert "python -m sphinx -W" in (ROOT / ".ci" / "run").read_text()


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    images = ROOT / "docs" / "images"
    subprocess.run([sys.executable, images / "draw.py", tmp_path], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(drawn) == 7
    assert drawn == {path.name: path.read_text() for path in images.glob("*.svg")}
