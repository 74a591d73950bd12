"""The commands in docs/command-line.md print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from npstream.commands.parser import build_parser

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
PROMPT = "$ "


def blocks() -> list[tuple[str, list[str]]]:
    """Return each command of the page's consoles with the lines that it prints."""
    commands: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.S | re.M):
        for line in block.splitlines():
            if line.startswith(PROMPT):
                commands.append((line.removeprefix(PROMPT), []))
            else:
                commands[-1][1].append(line)
    return commands


def run(commands: list[str], directory: Path) -> list[list[str]]:
    """Return the lines that each command prints in one shell, in a directory named ~/work."""
    work = directory / "work"
    work.mkdir()
    script = [f'npstream() {{ "{sys.executable}" -m npstream "$@"; }}', "export -f npstream"]
    for command in commands:
        script += [command, "echo; echo '-- end --'"]
    environment = {**os.environ, "COLUMNS": "80", "NPSTREAM_TRACEBACK": "", "PYTHONWARNINGS": ""}
    process = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=True,
    )
    output = process.stdout.replace(str(work), "/home/me")
    return [part.strip("\n").splitlines() for part in output.split("-- end --")[: len(commands)]]


def test_commands_print_what_the_page_shows(tmp_path):
    expected = blocks()
    assert len(expected) > 10
    printed = run([command for command, _ in expected], tmp_path)
    assert dict(zip([command for command, _ in expected], printed, strict=True)) == dict(expected)


def test_the_page_names_every_command():
    text = PAGE.read_text()
    (commands,) = [action.choices for action in build_parser()._actions if action.choices]
    for name in commands:
        assert f"| `{name} " in text or f"| `{name}`" in text, name
