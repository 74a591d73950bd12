"""Completion, in real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from npstream.__main__ import main
from npstream.commands.completion import SHELLS, iterate_levels
from npstream.commands.parser import build_parser

ZSH_STUBS = """
compdef() { : }
compadd() { shift; print -rl -- "$@" }
_files() { print files }
_describe() { print -rl -- ${${(P)2}%%:*} }
"""
"""Replacements for functions of zsh's completion system. They print the offered words."""


@pytest.fixture(params=list(SHELLS))
def shell(request):
    if shutil.which(request.param) is None:
        pytest.skip(f"could not find {request.param}")
    return request.param


def complete(shell: str, line: str, capsys, directory) -> list[str]:
    """Return what a shell offers for the last word of a line."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    (directory / "script").write_text(script)
    *_, last = words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = {
        "bash": f"source ./script; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _npstream\n"
        'printf "%s\\n" "${COMPREPLY[@]}"',
        "zsh": f"{ZSH_STUBS}\nsource ./script; words=({quoted}); CURRENT={len(words)}\n"
        f"PREFIX='{last}'; _npstream",
        "fish": f"source ./script; complete -C '{line}'",
    }[shell]
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    process = subprocess.run(
        [shell, *options, "-c", code],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory), "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert process.stderr == ""
    offered = [text.split("\t")[0] for text in process.stdout.split("\n") if text]
    # zsh itself selects what begins with the word; fish offers files, too.
    return sorted(text for text in offered if text.startswith(last))


def test_commands_are_completed(shell, capsys, tmp_path):
    assert complete(shell, "npstream co", capsys, tmp_path) == ["completion", "convert", "copy"]
    assert complete(shell, "npstream cache ", capsys, tmp_path) == ["clear", "fetch", "info"]
    assert complete(shell, "npstream cache f", capsys, tmp_path) == ["fetch"]
    assert complete(shell, "npstream completion ", capsys, tmp_path) == ["bash", "fish", "zsh"]


def test_options_are_completed(shell, capsys, tmp_path):
    assert complete(shell, "npstream verify d --j", capsys, tmp_path) == ["--json"]
    assert complete(shell, "npstream cache fetch --li", capsys, tmp_path) == ["--limit"]
    assert complete(shell, "npstream --ver", capsys, tmp_path) == ["--version"]
    # The argument of a command can have the name of another command: here, head is a file.
    assert complete(shell, "npstream info head --sp", capsys, tmp_path) == ["--split"]
    # Options before the command do not hide it.
    assert complete(shell, "npstream --traceback head --lim", capsys, tmp_path) == ["--limit"]


def test_values_of_options_are_completed(shell, capsys, tmp_path):
    assert complete(shell, "npstream convert a b --mode ", capsys, tmp_path) == ["a", "w", "x"]


def test_other_words_are_files(shell, capsys, tmp_path):
    (tmp_path / "cities").mkdir()
    offered = {
        "bash": [],  # "complete -o default" offers files then
        "zsh": ["files"],
        "fish": ["cities/"],
    }[shell]
    # In zsh, the stub of `_files` prints "files" in place of the names of files.
    first = {"zsh": "f"}.get(shell, "ci")
    assert complete(shell, f"npstream info {first}", capsys, tmp_path) == offered
    assert complete(shell, f"npstream info x --index {first}", capsys, tmp_path) == offered


def test_bash_completes_a_line_that_is_typed(tmp_path, capsys):
    """Readline itself asks for the completion, in an interactive bash."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "cities").touch()
    keys = 'source ./script\nnpstream() { echo "<$*>"; }\nnpstream ver\tci\t--js\t\nexit\n'
    process = subprocess.run(
        ["bash", "--norc", "-i"],
        input=keys,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )
    assert "<verify cities --json>" in process.stdout, process.stderr


def test_the_levels_hold_every_command_with_summaries():
    levels = {level.path: level for level in iterate_levels(build_parser())}
    assert set(levels[""].commands) | {"", "cache info", "cache clear", "cache fetch"} == set(
        levels
    )
    assert all(levels[""].commands.values())
    assert all(all(level.options.values()) for level in levels.values())


def test_an_unknown_shell_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "tcsh"])
    assert "'tcsh'" in capsys.readouterr().err
