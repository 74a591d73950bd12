"""The command line as a process: exit statuses, streams, terminals, and the small commands."""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import npstream
from npstream.__main__ import main
from npstream.commands.table import display_width
from npstream.tools.selftest import EXTRAS

NPSTREAM = f"{sys.executable} -m npstream"


@pytest.fixture
def numbers(tmp_path):
    """Write 3 texts and their numbers, and return the directory."""
    npstream.write(tmp_path / "numbers", {"x": np.arange(3), "text": ["東京 " * 30, "b", "c"]})
    return str(tmp_path / "numbers")


def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in bash."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "NPSTREAM_TRACEBACK": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_on_terminal(command: str, columns: int = 60, **environment: str) -> str:
    """Run a command whose streams are a terminal, and return what it shows."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = {**os.environ, "TERM": "xterm", "NO_COLOR": "", "NPSTREAM_TRACEBACK": ""}
    settings.pop("COLUMNS", None)
    with subprocess.Popen(
        command,
        shell=True,
        env=settings | environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ):
        os.close(terminal)
        output = b""
        try:
            while part := os.read(controller, 1 << 16):
                output += part
        except OSError:  # EIO: the other end is closed
            pass
    os.close(controller)
    return output.decode().replace("\r\n", "\n")


def test_demo_prints_its_steps_in_order_without_torch(tmp_path):
    code = "import sys; from npstream.__main__ import main; main(sys.argv[1:])\n"
    check = "assert 'torch' not in sys.modules"
    out = tmp_path / "library"
    process = subprocess.run(
        [sys.executable, "-c", code + check, "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    ds = npstream.open(out)
    assert f"together they read each of the {len(ds):,} samples exactly once" in process.stdout
    assert len(process.stdout.splitlines()) <= 60
    compiled = process.stdout.index("# kernels are compiled once on a machine")
    assert compiled < process.stdout.index("# a batch of 4,096") < process.stdout.index("rank 0: ")
    assert ds[ds["path"] == "json/decoder.py"]["package"][0] == "json"


def test_demo_fails_in_a_directory_that_has_a_dataset(tmp_path, capsys):
    npstream.write(tmp_path, {"x": np.arange(3)})
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_info_prints_the_repr(tmp_path, capsys):
    npstream.write(tmp_path / "train", {"x": np.arange(3)})
    assert main(["info", str(tmp_path), "--split", "train"]) == 0
    assert capsys.readouterr().out.strip() == repr(npstream.open(tmp_path, split="train"))


def test_info_of_a_missing_path_fails_with_a_message(tmp_path, capsys):
    assert main(["info", str(tmp_path / "absent")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("npstream: ")
    assert "absent" in message


def test_precompile_succeeds(capsys):
    assert main(["precompile"]) == 0


def test_selftest_knows_the_extras_of_all():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    (extras,) = re.findall(r"npstream\[(.*)\]", setup["options.extras_require"]["all"])
    assert sorted(EXTRAS) == sorted(extras.split(","))


def test_selftest_lists_the_checks_that_pass(capsys):
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "npstream works"
    assert [line[:8] for line in lines[2:-1]] == ["ok      "] * 7


def test_selftest_lists_the_checks_that_fail(capsys, monkeypatch):
    def refuse(*_arguments, **_settings):
        raise ValueError("no such hash")

    monkeypatch.setattr(npstream, "verify_dataset", refuse)
    assert main(["selftest"]) == 1
    output = capsys.readouterr().out
    assert "FAILED  hashes and statistics of the side-car: ValueError: no such hash" in output
    assert output.endswith("1 check failed\n")


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    for command in (
        "info", "head", "sample", "describe", "query", "verify", "index", "convert", "merge",
        "copy", "cache", "demo", "precompile", "selftest", "completion",
    ):  # fmt: skip
        assert f"\n    {command}" in output


@pytest.mark.parametrize("option", ["--version", "-v"])
def test_version_prints_the_version(option, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([option])
    assert capsys.readouterr().out == f"npstream {npstream.__version__}\n"


def test_an_unknown_command_fails(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["opan"])
    assert "'opan'" in capsys.readouterr().err


def test_errors_of_the_command_line_say_what_to_write(capsys):
    for words, message in {
        ("cache",): "{info,clear,fetch}",
        ("verify", "a", "b", "--index", "c"): "--index is the side-car of one dataset",
        ("index", "a", "b", "--out", "c"): "--out is the place of one side-car",
        ("head", "--columns", "a", "b"): "required: url; an option such as --columns takes all",
        ("--vebose",): "'--vebose' names no command; see npstream --help",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert message in capsys.readouterr().err


# Several datasets, JSON


def test_verify_reports_each_dataset(numbers, tmp_path, capsys):
    npstream.write(tmp_path / "damaged", {"x": np.arange(3)})
    shard = tmp_path / "damaged" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    words = ["verify", str(tmp_path / "damaged"), str(tmp_path / "absent"), numbers]
    assert main(words) == 1
    captured = capsys.readouterr()
    *_, last = captured.out.splitlines()
    assert captured.out.count("problem\n") + captured.out.count("problems\n") == 2
    assert last.startswith(numbers)
    assert last.endswith("no problems")
    assert "absent" in captured.err
    assert main([*words, "--json"]) == 1
    damaged, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert damaged["problems"] == list(npstream.verify_dataset(tmp_path / "damaged").problems)
    assert damaged["problems"]
    assert (whole["samples"], whole["problems"]) == (3, [])
    assert main(["verify", numbers]) == 0
    assert main(["verify", str(tmp_path), "--split", "numbers"]) == 0


def test_index_builds_several_side_cars(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        npstream.write(path, {"x": np.arange(3)}, sidecar=False)
    assert main(["index", *paths]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{path}/index.msgpack" for path in paths]


def test_cache_info_as_json(tmp_path, capsys):
    assert main(["cache", "info", str(tmp_path / "cache"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["directory"] == str(tmp_path / "cache")
    assert (report["files"], report["nbytes"]) == (0, 0)


def test_copy_and_merge_report_as_json(numbers, tmp_path, capsys):
    assert main(["copy", numbers, str(tmp_path / "copy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 3
    assert main(["merge", numbers, str(tmp_path / "copy"), str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 6


# Streams


def test_help_imports_no_heavy_modules():
    code = "import sys; from npstream.__main__ import main\ntry: main(['verify', '--help'])\n"
    code += "except SystemExit: print(*sys.modules)"
    loaded = run(f'{sys.executable} -c "{code}"').stdout.splitlines()[-1].split()
    assert "npstream.commands.parser" in loaded
    heavy = {
        "numpy",
        "inspect",
        "dataclasses",
        "json",
        "urllib.parse",
        "logging",
        "npstream.errors",
    }
    assert heavy.isdisjoint(loaded)


def test_a_reader_that_closes_the_pipe_is_no_error(numbers):
    for command in (f"head {numbers} --json", "--help", "completion bash", "cache --help"):
        process = run(f"{NPSTREAM} {command} | true")
        assert process.stderr == ""
        assert process.returncode in (0, 141)
    # The output does not fit in the pipe's buffer, so `head` ends before the command does.
    code = (
        "import sys; from npstream.tools import selftest; from npstream.__main__ import main\n"
        "selftest.selftest = lambda: [print('x' * 1000) for _ in range(10_000)]\n"
        "sys.argv = ['npstream', 'selftest']; sys.exit(main())"
    )
    process = run(f'{sys.executable} -c "{code}" | head -1')
    assert (process.returncode, process.stderr) == (141, "")
    assert process.stdout == "x" * 1000 + "\n"


def test_output_that_cannot_be_written_is_an_error(numbers):
    if not os.path.exists("/dev/full"):
        pytest.skip("could not find /dev/full")
    process = run(f"{NPSTREAM} head {numbers} > /dev/full")
    assert (process.returncode, process.stderr) == (1, "npstream: No space left on device\n")


def test_a_closed_output_is_no_error(numbers):
    assert run(f"{NPSTREAM} verify {numbers} >&-").returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_output_cannot_encode_are_escaped(numbers, encoding):
    process = run(f"{NPSTREAM} head {numbers}", PYTHONIOENCODING=encoding)
    assert process.returncode == 0
    assert "\\u6771" in process.stdout


def test_control_c_ends_the_process_without_a_traceback():
    code = (
        "import os, signal, sys; from npstream.tools import precompile\n"
        "from npstream.__main__ import main\n"
        "precompile.precompile = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['npstream', 'precompile']; sys.exit(main())"
    )
    process = run(f'{sys.executable} -c "{code}"; echo $?')
    assert (process.stdout, process.stderr) == ("130\n", "npstream: interrupted\n")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert process.returncode == -signal.SIGINT  # so that a loop of a shell ends, too


def test_control_c_in_a_call(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("npstream.tools.precompile.precompile", interrupt)
    assert main(["precompile"]) == 130
    assert capsys.readouterr().err == "npstream: interrupted\n"


def test_tracebacks_are_shown_on_request(tmp_path):
    for command, is_shown in {
        "info absent": False,
        "--traceback info absent": True,
        "info absent --traceback": True,
        "info absent absent --traceback": True,
    }.items():
        process = run(f"cd {tmp_path}; {NPSTREAM} {command}")
        assert process.returncode == 1
        assert ("Traceback (most recent call last)" in process.stderr) == is_shown
        assert "absent" in process.stderr
    process = run(f"{NPSTREAM} info {tmp_path}/absent", NPSTREAM_TRACEBACK="1")
    assert "Traceback (most recent call last)" in process.stderr


def test_an_unforeseen_error_is_one_line(monkeypatch, capsys):
    def fail():
        raise RuntimeError("a mistake")

    monkeypatch.delenv("NPSTREAM_TRACEBACK", raising=False)
    monkeypatch.setattr("npstream.tools.precompile.precompile", fail)
    assert main(["precompile"]) == 1
    expected = "npstream: RuntimeError: a mistake; --traceback shows where it was raised\n"
    assert capsys.readouterr().err == expected


def test_warnings_are_one_line():
    code = (
        "import sys, warnings; from npstream.tools import precompile\n"
        "from npstream.__main__ import main\n"
        "precompile.precompile = lambda: warnings.warn('beware')\n"
        "sys.argv = ['npstream', 'precompile']; sys.exit(main())"
    )
    process = run(f'{sys.executable} -c "{code}"')
    assert (process.returncode, process.stderr) == (0, "npstream: warning: beware\n")


# Terminals


def test_styles_are_for_terminals(numbers):
    command = f"{NPSTREAM} verify {numbers} {numbers}x; {NPSTREAM} head {numbers}"
    output = run_on_terminal(command)
    assert "\x1b[32m" in output  # no problems
    assert "\x1b[31mnpstream:\x1b[0m" in output
    assert "\x1b[1mrow" in output
    for settings in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in run_on_terminal(command, **settings)
    process = run(command)
    assert "\x1b" not in process.stdout + process.stderr


@pytest.mark.parametrize("columns", [30, 60, 100])
def test_tables_fit_the_terminal(numbers, columns):
    output = run_on_terminal(f"{NPSTREAM} head {numbers}", columns, NO_COLOR="1")
    assert "東京" in output
    # A truncated cell can be one column too short for a wide character.
    assert columns - 1 <= max(map(display_width, output.splitlines())) <= columns


def test_progress_is_shown_on_a_terminal_only(numbers):
    code = (
        "import sys; from npstream._core import progress; from npstream.__main__ import main\n"
        "progress._DELAY = progress._INTERVAL = -1\n"
        f"sys.argv = ['npstream', 'verify', {numbers!r}]; sys.exit(main())"
    )
    command = f'{sys.executable} -c "{code}"'
    assert "verifying: 100%" in run_on_terminal(command)
    assert run(command).stderr == ""
