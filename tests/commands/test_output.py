"""JSON of values, messages of errors."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

from npstream.commands.output import json_text, json_value, print_error, run_for_each
from npstream.errors import StorageError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(-5), -5), (np.uint64(2**64 - 1), 2**64 - 1), (10**30, 10**30), (np.True_, True),
        (0.1, 0.1), (np.float32(0.1), 0.1), (np.float16(0.1), 0.1), (np.float64(1 / 3), 1 / 3),
        (float("nan"), "NaN"), (np.float32("inf"), "Infinity"), (-np.inf, "-Infinity"),
        (np.datetime64("2026-01-31T12:00"), "2026-01-31T12:00"), (np.datetime64("NaT"), None),
        (b"\x00\xff", "AP8="), (np.bytes_(b"a"), "YQ=="), (np.str_("a"), "a"),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]), (np.array(3), 3), (np.zeros((0, 2)), []),
        ({1: (None, {"x": np.arange(2)})}, {"1": [None, {"x": [0, 1]}]}), (1 + 2j, "(1+2j)"),
    ],
)  # fmt: skip
def test_values_become_those_of_json(value, expected):
    converted = json_value(value)
    assert converted == expected
    assert type(converted) is type(expected)
    json.dumps(converted, allow_nan=False)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_one_line_that_any_stream_can_hold(encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    document = {"text": "東京 \x1b[31m\n", "half": "\ud800"}
    text = json_text(document)
    text.encode(encoding)
    assert "\n" not in text
    assert "\x1b" not in text
    assert json.loads(text) == document
    assert ("東京" in text) == (encoding == "utf-8")


def test_messages_of_errors_have_notes_and_no_credentials(capsys, monkeypatch):
    monkeypatch.delenv("NPSTREAM_TRACEBACK", raising=False)
    noted = ValueError("wrong")
    noted.add_note("a note")
    for error, expected in {
        StorageError(2, "no dataset is here", "s3://b/index.json"):
            "npstream: s3://b/index.json: no dataset is here\n",
        OSError(28, "No space left on device"): "npstream: No space left on device\n",
        noted: "npstream: wrong\na note\n",
        MemoryError(): "npstream: MemoryError\n",
        RuntimeError("of https://user:pw-of-me@host/a?sig=abcdef"):
            "npstream: RuntimeError: of https://host/a; --traceback shows where it was raised\n",
    }.items():  # fmt: skip
        print_error(error)
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("value", "shown"), [("", False), ("0", False), ("1", True), ("full", True)]
)
def test_a_variable_shows_tracebacks(value, shown, capsys, monkeypatch):
    monkeypatch.setenv("NPSTREAM_TRACEBACK", value)
    try:
        raise ValueError("wrong")
    except ValueError as error:
        print_error(error)
    assert ("Traceback (most recent call last)" in capsys.readouterr().err) == shown


def test_an_error_of_one_url_does_not_stop_the_others(capsys):
    seen = []

    def run(url):
        seen.append(url)
        if url == "b":
            raise ValueError("b is wrong")
        return 1 if url == "c" else 0  # the exit status

    assert run_for_each(["a", "b", "d"], run) == 1
    assert seen == ["a", "b", "d"]
    assert capsys.readouterr().err == "npstream: b is wrong\n"
    assert run_for_each(["a", "d"], run) == 0
    assert run_for_each(["a", "c", "d"], run) == 1
    # The error of a single URL is raised, so the program prints it.
    with pytest.raises(ValueError, match="b is wrong"):
        run_for_each(["b"], run)
