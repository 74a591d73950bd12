"""Sources without samples: their errors, and what an append of them does.

Integers beyond int64 and texts without tokens are tested here, too.
"""

from __future__ import annotations

import tarfile

import pytest

import npstream

pytest.importorskip("pyarrow")


@pytest.fixture(params=["csv", "header", "jsonl", "tar", "directory"])
def empty(request, tmp_path):
    """Return the path of a source without samples, and the error of its conversion."""
    path = tmp_path / f"empty.{request.param}"
    if request.param == "header":
        path = tmp_path / "header.csv"
        path.write_text("x,text\n")
    elif request.param == "tar":
        tarfile.open(path, "w").close()
    elif request.param == "directory":
        path.mkdir()
    else:
        path.touch()
    messages = {
        "csv": "all files are empty",
        "header": r"there are no rows after the line of names, .* columns=\{'x': 'str', ...\}",
        "jsonl": "there are no samples",
        "tar": "there is no sample",
        "directory": "the directory has no files",
    }
    return path, messages[request.param]


def test_an_append_of_nothing_changes_nothing(empty, tmp_path):
    source, message = empty
    npstream.write(tmp_path / "ds", {"x": [1, 2], "text": ["a", "b"]})
    for options in ({}, {"columns": ["x", "text"]}, {"where": "x > 1"}, {"resume": True}):
        report = npstream.convert(source, tmp_path / "ds", mode="a", **options)
        assert (report.samples, report.columns) == (0, {"x": "int", "text": "str"})
    assert npstream.open(tmp_path / "ds")["x"].load().tolist() == [1, 2]
    for mode in ("x", "w"):
        with pytest.raises(ValueError, match=message):
            npstream.convert(source, tmp_path / "new", mode=mode)
    with pytest.raises(ValueError, match="no samples and no columns="):
        npstream.convert(source, tmp_path / "new", mode="a")
    assert not (tmp_path / "new").exists()


def test_a_line_of_names_with_types_is_a_dataset_of_no_samples(tmp_path):
    (tmp_path / "a.csv").write_text("x,text\n")
    columns = {"x": "int32", "text": "str"}
    assert npstream.convert(tmp_path / "a.csv", tmp_path / "ds", columns=columns).samples == 0
    assert npstream.open(tmp_path / "ds").columns == ("x", "text")


def test_integers_beyond_int64_are_stored_as_str_int(tmp_path):
    values = [99999999999999999999, -5, 10**37, 0]
    (tmp_path / "a.csv").write_text("x\n" + "".join(f"{value}\n" for value in values))
    with pytest.raises(ValueError, match=r"exceeds int64.*columns=\{'x': 'str_int', ...\}"):
        npstream.convert(tmp_path / "a.csv", tmp_path / "ds")
    npstream.convert(tmp_path / "a.csv", tmp_path / "ds", columns={"x": "str_int"})
    assert list(npstream.open(tmp_path / "ds")["x"]) == values
    for bad in ("1.5", str(10**38), "x"):
        (tmp_path / "a.csv").write_text(f"x\n1\n{bad}\n")
        with pytest.raises(ValueError, match=r"row 3: column 'x': .*'str_int'.*columns="):
            npstream.convert(tmp_path / "a.csv", tmp_path / "other", columns={"x": "str_int"})


def test_text_without_tokens_names_its_sample(tmp_path):
    texts = [{"text": "a"}, {"text": ""}]
    for data, number in ((texts, 1), (texts[::-1], 0)):
        with pytest.raises(ValueError, match=f"sample {number}: column 'tokens'"):
            npstream.convert(data, tmp_path / "ds", tokenizer=lambda text: list(text.encode()))
