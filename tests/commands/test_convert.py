"""The command ``npstream convert``."""

from __future__ import annotations

import json

import pytest
from tokenizing import word_tokenizer

import npstream
from npstream.__main__ import main

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Change to a new directory with two CSV files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.csv").write_text("id;name\n1;x\n2;y\n")
    (tmp_path / "2.csv").write_text("id;name\n3;z\n")
    return tmp_path


SEMICOLONS = ["--reader-options", "delimiter=;"]


def test_files_are_converted(capsys):
    assert main(["convert", "1.csv", "2.csv", "out", *SEMICOLONS]) == 0
    assert "3 samples in 1 shard of " in capsys.readouterr().out
    assert list(npstream.open("out")["name"]) == ["x", "y", "z"]


def test_a_dry_run_shows_columns_and_the_count(capsys, directory):
    assert main(["convert", "*.csv", "out", "--dry-run", *SEMICOLONS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("csv, 3 samples in 2 files of 28 bytes")
    assert lines[1:] == ["  id    int64", "  name  str"]
    assert not (directory / "out").exists()


def test_all_options_can_be_combined(capsys):
    words = [
        "convert", "*.csv", "out", *SEMICOLONS, "--columns", "number:int32", "name", "more",
        "--rename", "id=number", "--where", "number >= 2", "--fill", "more=1.5",
        "--compression", "zstd", "--hashes", "sha1", "--shard-size", "1MiB", "--json",
        "--kind", "csv", "--no-sidecar",
    ]  # fmt: skip
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["columns"] == {"number": "int32", "name": "str", "more": "float64"}
    assert npstream.open("out")[1] == {"number": 3, "name": "z", "more": 1.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [(["none.csv", "out"], "no such file"), (["1.csv", "out", "--where", "id ="], "npstream: "),
     (["1.csv", "out", "--reader-options", "sep=;"], "no option 'sep'"),
     (["3.csv", "out"], "in part '3.csv' of the")],
)  # fmt: skip
def test_errors_are_shown_without_a_traceback(capsys, directory, words, message):
    (directory / "3.csv").write_text('a\n1\n""\n')  # the empty number is a null
    assert main(["convert", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--columns", "a:"], "--columns: 'a:': expected NAME or NAME:ENCODING"),
     (["--rename", "a"], "--rename: 'a': expected a name, =, and a new name"),
     (["--fill", "a"], "--fill: expected NAME=VALUE"), (["--workers", "x"], "whole number")],
)  # fmt: skip
def test_wrong_options_are_mistakes_of_the_command_line(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "1.csv", "out", *words])
    assert message in capsys.readouterr().err


def test_a_dry_run_as_json(capsys):
    assert main(["convert", "1.csv", "out", "--dry-run", "--json", *SEMICOLONS]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["kind"], plan["samples"]) == ("csv", 2)
    assert plan["columns"] == {"id": "int64", "name": "str"}


def test_a_tokenizer_file_makes_tokens(capsys, directory):
    pytest.importorskip("tokenizers")
    word_tokenizer().save("tokenizer.json")  # [EOS] is 1, w1 is 3, w2 is 4
    (directory / "texts.csv").write_text("id,body\n1,w1 w2\n2,w3\n3,w4\n")
    words = ["convert", "texts.csv", "out", "--tokenizer", "tokenizer.json", "--column", "body"]
    assert main([*words, "--workers", "1", "--token-options", "name=ids"]) == 0
    assert [row.tolist() for row in npstream.open("out")["ids"].load()] == [[3, 4], [5], [6]]
    words[2] = "blocks"  # the target
    assert main([*words, "--block", "3", "--separator", "[EOS]"]) == 0
    assert npstream.open("blocks")["tokens"].load().tolist() == [[3, 4, 1], [5, 1, 6]]
    words[2] = "numbers"
    assert main([*words, "--block", "3", "--separator", "0"]) == 0
    assert npstream.open("numbers")["tokens"][0].tolist() == [3, 4, 0]
    capsys.readouterr()
    for file, message in (("none", "no such file; expected a tok"), ("1.csv", "not a tokenizer")):
        words[4] = file  # the tokenizer
        assert main(words) != 0
        assert message in capsys.readouterr().err
