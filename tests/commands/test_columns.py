"""The commands ``npstream add-columns`` and ``npstream remove-columns``."""

from __future__ import annotations

import json

import numpy as np
import pytest

import npstream
from npstream.__main__ import main


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Change to a new directory with a dataset of four samples."""
    monkeypatch.chdir(tmp_path)
    npstream.write("ds", {"id": [5, 6, 7, 8], "text": list("abcd")})
    return tmp_path


def test_an_array_is_added_by_position(capsys):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save("embedding.npy", values)
    assert main(["add-columns", "ds", "embedding.npy", "--compression", "zstd", "--resume"]) == 0
    assert "4 samples in 1 shard of " in capsys.readouterr().out
    ds = npstream.open("ds")
    np.testing.assert_array_equal(ds["embedding"].load(), values)
    assert ds.columns == ("id", "text", "embedding")


def test_rows_are_joined_by_a_key(capsys):
    pytest.importorskip("pyarrow")
    with open("labels.csv", "w", encoding="utf-8") as file:
        file.write("id,label,unused\n8,good,x\n6,bad,x\n")
    words = ["add-columns", "ds", "labels.csv", "--key", "id", "--columns", "label"]
    assert main(words) == 1
    assert "data has no values for 2 samples of the dataset, with the keys 5, 7" in (
        capsys.readouterr().err
    )
    assert main([*words, "--fill", "label=none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["columns"] == {"label": "str"}
    assert list(npstream.open("ds")["label"]) == ["none", "bad", "none", "good"]


def test_the_columns_of_another_dataset():
    npstream.write("scores", {"id": [8, 7, 6, 5], "score": [0.8, 0.7, 0.6, 0.5]})
    assert main(["add-columns", "ds", "scores", "--key", "id"]) == 0
    assert npstream.open("ds")["score"].load().tolist() == [0.5, 0.6, 0.7, 0.8]


def test_columns_are_renamed_replaced_and_removed(capsys):
    np.save("a.npy", np.arange(4))
    np.save("b.npy", np.arange(4) * 2)
    assert main(["add-columns", "ds", "a.npy", "--rename", "a=score"]) == 0
    assert main(["add-columns", "ds", "b.npy", "--rename", "b=score"]) == 1
    assert "the column 'score' was added before" in capsys.readouterr().err
    assert main(["add-columns", "ds", "b.npy", "--rename", "b=score", "--replace"]) == 0
    assert npstream.open("ds")["score"].load().tolist() == [0, 2, 4, 6]
    capsys.readouterr()
    assert main(["remove-columns", "ds", "score"]) == 0
    assert capsys.readouterr().out == "ds: removed 'score'\n"
    assert npstream.open("ds").columns == ("id", "text")
    assert main(["remove-columns", "ds", "score"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "a.npy"], "no dataset is here"),
        (["ds", "missing.npy"], "no such file or directory"),
        (["ds", "a.npy"], "data has 3 values of each column, and the dataset has 4 samples"),
        (["ds", "a.npy", "--key", "id"], "no column 'id'"),
        (["ds", "a.npy", "--fill", "b=1"], "fill: data has no column 'b'"),
        (["ds", "a.npy", "--columns", "b"], "no column 'b'"),
    ],
)
def test_errors_add_no_column(words, message, capsys):
    np.save("a.npy", np.arange(3))
    assert main(["add-columns", *words]) == 1
    assert message in capsys.readouterr().err
    assert npstream.open("ds").columns == ("id", "text")
