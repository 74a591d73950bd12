"""`convert` with a tokenizer: the column of ids, other columns, blocks, maps, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizing import expected_blocks, letters, texts, word_tokenizer

import npstream
from npstream.errors import ColumnError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tokenizers")

TEXTS = [text for text in texts() if text]
IDS = [word_tokenizer().encode(text).ids for text in TEXTS]
EOS = 1
HALF = len(TEXTS) // 2


@pytest.fixture
def source(tmp_path):
    table = pa.table(
        {
            "id": pa.array(range(len(TEXTS)), pa.int32()),
            "text": TEXTS,
            "label": [k % 3 for k in range(len(TEXTS))],
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table.slice(0, HALF), tmp_path / "in" / "0.parquet")
    pq.write_table(table.slice(HALF), tmp_path / "in" / "1.parquet")
    return tmp_path / "in"


def rows(path, name="tokens"):
    return [row.tolist() for row in npstream.open(path)[name].load()]


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_take_the_place_of_the_text(source, tmp_path, workers):
    arguments = {"tokenizer": word_tokenizer(), "workers": workers}
    report = npstream.convert(source, tmp_path / "out", **arguments)
    expected = {"id": "int32", "tokens": "ndarray:uint16", "label": "int64"}
    assert report.columns == expected
    assert rows(tmp_path / "out") == IDS
    assert npstream.convert(source, "no", dry_run=True, **arguments).columns == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["label"], {"label": "int64", "tokens": "ndarray:uint16"}),
        (["label", "text"], {"label": "int64", "tokens": "ndarray:uint16"}),
        (["tokens", "id"], {"tokens": "ndarray:uint16", "id": "int32"}),
        ({"tokens": "ndarray:uint32", "id": "uint8"}, {"tokens": "ndarray:uint32", "id": "uint8"}),
        (["tokens"], {"tokens": "ndarray:uint16"}),
    ],
)
def test_columns_are_chosen(source, tmp_path, columns, expected):
    report = npstream.convert(
        source, tmp_path / "out", tokenizer=word_tokenizer(), columns=columns, where="label == 1"
    )
    assert report.columns == expected
    assert rows(tmp_path / "out") == IDS[1::3]
    plan = npstream.convert(source, "no", tokenizer=word_tokenizer(), columns=columns, dry_run=True)
    assert plan.columns == expected


def texts_of_label_0_twice(sample):
    return [{"body": sample["text"], "n": 1}] * 2 if sample["label"] == 0 else None


@pytest.mark.parametrize("workers", [0, 2])
def test_the_tokenizer_follows_map(source, tmp_path, workers):
    arguments = {
        "tokenizer": word_tokenizer(), "column": "body", "map": texts_of_label_0_twice,
        "workers": workers,
    }  # fmt: skip
    report = npstream.convert(source, tmp_path / "out", **arguments)
    assert report.columns == {"tokens": "ndarray:uint16", "n": "int"}
    assert rows(tmp_path / "out") == [ids for ids in IDS[::3] for _ in range(2)]
    npstream.convert(source, tmp_path / "blocks", block=64, **arguments)
    np.testing.assert_array_equal(
        npstream.open(tmp_path / "blocks")["tokens"].load(),
        expected_blocks([ids for ids in IDS[::3] for _ in range(2)], 64),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_have_the_ids_and_separators_of_all_texts(source, tmp_path, workers):
    arguments = {
        "tokenizer": word_tokenizer(), "block": 64, "separator": "[EOS]", "workers": workers,
    }  # fmt: skip
    report = npstream.convert(source, tmp_path / "out", where="label != 1", **arguments)
    assert report.columns == {"tokens": "ndarray:uint16:64"}
    expected = expected_blocks([ids for k, ids in enumerate(IDS) if k % 3 != 1], 64, EOS)
    np.testing.assert_array_equal(npstream.open(tmp_path / "out")["tokens"].load(), expected)
    plan = npstream.convert(source, "no", dry_run=True, **arguments)
    assert plan.columns == {"tokens": "ndarray:uint16:64"}
    assert plan.samples == len(TEXTS)  # a dry run counts texts, not blocks


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_sources_are_tokenized(source, tmp_path, servers, workers):
    remote_dir = servers["s3"].new_directory()
    for file in source.iterdir():
        remote_dir.put(f"in/{file.name}", file.read_bytes())
    arguments = {
        "tokenizer": word_tokenizer(), "workers": workers,
        "source_options": remote_dir.storage_options,
    }  # fmt: skip
    npstream.convert(f"{remote_dir.url}/in", tmp_path / "out", **arguments)
    assert rows(tmp_path / "out") == IDS
    assert npstream.open(tmp_path / "out")["id"].load().tolist() == list(range(len(IDS)))
    npstream.convert(f"{remote_dir.url}/in", tmp_path / "blocks", block=64, **arguments)
    blocks = npstream.open(tmp_path / "blocks")["tokens"].load()
    np.testing.assert_array_equal(blocks, expected_blocks(IDS, 64))


def test_the_name_dtype_and_function_of_ids_are_chosen(source, tmp_path):
    report = npstream.convert(
        source, tmp_path / "out", tokenizer=letters, column="body", rename={"text": "body"},
        columns=["ids"], token_options={"name": "ids", "dtype": "uint16"},
    )  # fmt: skip
    assert report.columns == {"ids": "ndarray:uint16"}
    assert rows(tmp_path / "out", "ids") == [letters(text) for text in TEXTS]


@pytest.mark.parametrize("block", [None, 4])
def test_missing_texts_are_filled(tmp_path, block):
    pq.write_table(pa.table({"text": ["w1 w2 w3", None, "w4"]}), tmp_path / "a.parquet")
    arguments = {"tokenizer": word_tokenizer(), "block": block}
    with pytest.raises(ValueError, match="column 'text': 1 null in 3 values"):
        npstream.convert(tmp_path / "a.parquet", tmp_path / "out", **arguments)
    npstream.convert(tmp_path / "a.parquet", tmp_path / "out", fill={"text": "w9"}, **arguments)
    # w1 is 3, and w9 is 11. An incomplete block is left out.
    expected = [[3, 4, 5, 11]] if block else [[3, 4, 5], [11], [6]]
    assert rows(tmp_path / "out") == expected
    samples = [{"text": "w1 w2 w3"}, {"text": None}, {"text": "w4"}]
    npstream.convert(samples, tmp_path / "samples", fill={"text": "w9"}, **arguments)
    assert rows(tmp_path / "samples") == expected


def test_a_part_without_samples_is_skipped(source, tmp_path):
    npstream.convert(
        source, tmp_path / "out", tokenizer=word_tokenizer(), where=f"id >= {HALF + 2}"
    )
    assert rows(tmp_path / "out") == IDS[HALF + 2 :]


def test_arguments_that_exclude_each_other_raise(source):
    tokenizer = word_tokenizer()
    for arguments in ({"block": 8}, {"token_options": {}}):
        with pytest.raises(TypeError, match="need tokenizer="):
            npstream.convert(source, "no", **arguments)
    with pytest.raises(TypeError, match="separator= needs block="):
        npstream.convert(source, "no", tokenizer=tokenizer, separator=1)
    with pytest.raises(TypeError, match=r"token_options has no option 'pad'; its options: .*name"):
        npstream.convert(source, "no", tokenizer=tokenizer, token_options={"pad": 1})
    with pytest.raises(ValueError, match=r"columns= names 'id': blocks cut across samples"):
        npstream.convert(source, "no", tokenizer=tokenizer, block=8, columns=["id"])
    with pytest.raises(ColumnError, match="no column 'txt'; did you mean 'text'"):
        npstream.convert(source, "no", tokenizer=tokenizer, column="txt", block=8)
    with pytest.raises(ColumnError, match="no column 'txt'; did you mean 'text'"):
        npstream.convert(source, "no", tokenizer=tokenizer, column="txt")
    with pytest.raises(ValueError, match="token ids are stored as 'ndarray:uint16'"):
        npstream.convert(source, "no", tokenizer=tokenizer, columns={"tokens": "json"})


def test_without_a_tokenizer_the_separator_is_that_of_the_format(tmp_path):
    npstream.convert([{"x": 1, "y": 2}], tmp_path / "out", format="xsv", separator=" | ")
    assert "1 | 2" in (tmp_path / "out" / "shard.00000.xsv").read_text()


def test_a_dry_run_of_blocks_counts_the_texts_before_map(tmp_path):
    """The number of samples is that of the source, also if `map` returns several for each."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS[:9]))
    arguments = {
        "tokenizer": word_tokenizer(), "block": 64,
        "map": lambda sample: [{"text": sample["text"]}] * 2,
    }  # fmt: skip
    plan = npstream.convert(tmp_path / "a.jsonl", "no", dry_run=True, **arguments)
    assert plan.samples == 9
    assert plan.columns == {"tokens": "ndarray:uint16:64"}
