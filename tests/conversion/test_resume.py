"""Conversions with ``resume=True`` continue at a sample within a file."""

from __future__ import annotations

import json
import shutil

import pytest
from resumed_writes import count_steps, kill_at_step, local_files

import npstream


def token_ids(text):
    return [len(word) for word in text.split()] + [7] * (len(text) % 13)


CASES = {
    "JSON lines": (".jsonl", {}),
    "a condition": (".jsonl", {"where": "x % 3 == 1"}),
    "map in workers": (".csv", {"map": lambda row: [row] * (row["x"] % 4), "workers": 2}),
    "tokens": (".jsonl", {"tokenizer": token_ids, "column": "text"}),
    "blocks of tokens": (
        ".jsonl",
        {"tokenizer": token_ids, "column": "text", "block": 16, "separator": 0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_conversion_resumes(case, tmp_path):
    extension, settings = CASES[case]
    source = tmp_path / "source"
    source.mkdir()
    for file in range(3):
        rows = [{"x": x, "text": "word " * (x % 5 + 1)} for x in range(file * 40, file * 40 + 40)]
        lines = [json.dumps(row) for row in rows]
        if extension == ".csv":
            lines = ["x,text", *(f"{row['x']},{row['text']}" for row in rows)]
        (source / f"{file}{extension}").write_text("".join(f"{line}\n" for line in lines))
    npstream.convert(source, tmp_path / "whole", shard_size=700, **settings)

    def convert():
        npstream.convert(source, tmp_path / "ds", shard_size=700, resume=True, **settings)

    steps = count_steps(convert)
    shutil.rmtree(tmp_path / "ds")
    for step in (steps // 2, steps // 4):
        assert kill_at_step(step, convert)
    assert len(local_files(tmp_path / "ds")) > 2
    convert()
    assert local_files(tmp_path / "ds") == local_files(tmp_path / "whole")
