"""The command line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import npstream
from npstream.__main__ import main


def test_demo_shows_everything_without_torch(tmp_path):
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
    for command in ("demo", "info", "cache", "index", "verify", "precompile", "selftest"):
        assert f"\n    {command}" in output


def test_version_prints_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"npstream {npstream.__version__}\n"


def test_an_unknown_command_fails(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["opan"])
    assert "'opan'" in capsys.readouterr().err


def test_errors_of_the_command_line_say_what_to_write(capsys):
    for words, said in {
        ("cache",): "{info,clear,fetch}",
        ("--vebose",): "'--vebose' names no command; see npstream --help",
    }.items():
        with pytest.raises(SystemExit):
            main(words)
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["-v"])
    assert capsys.readouterr().out == f"npstream {npstream.__version__}\n"
