"""token_blocks: the blocks do not depend on workers, sources and interruptions; errors."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
from resumed_writes import count_steps, kill_at_step, local_files
from started import started_children
from tokenizing import expected_blocks, letters, letters_of_texts, texts, word_tokenizer

import npstream
from npstream.errors import ColumnError
from npstream.tokens import TokenMap, blocks, token_blocks
from npstream.writing.destination import WORK
from npstream.writing.inputs.parts import Part, PartedInput

pytest.importorskip("tokenizers")

TEXTS = texts()
EOS = 1
IDS = [word_tokenizer().encode(text).ids for text in TEXTS]


@pytest.fixture(params=[1, 1 << 21])
def table_bytes(request, monkeypatch):
    """Write each block as a table, or all blocks as one table."""
    monkeypatch.setattr(blocks, "_TABLE_BYTES", request.param)


def write(path, *arguments, **options):
    report = npstream.write(path, token_blocks(*arguments, **options))
    return report, npstream.open(path)["tokens"].load()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_blocks_are_cut_across_documents(tmp_path, table_bytes, block, workers):
    report, stored = write(
        tmp_path / "out", TEXTS, word_tokenizer(), block, separator=EOS, workers=workers
    )
    expected = expected_blocks(IDS, block, EOS)
    assert report.columns == {"tokens": f"ndarray:uint16:{block}"}
    np.testing.assert_array_equal(stored, expected)


def test_functions_as_tokenizers_without_a_separator(tmp_path, table_bytes):
    expected = expected_blocks(letters_of_texts(TEXTS), 50)
    _, stored = write(tmp_path / "one", TEXTS, letters, 50)
    np.testing.assert_array_equal(stored, expected)
    assert stored.dtype == np.uint32
    _, stored = write(tmp_path / "several", TEXTS, letters_of_texts, 50, batched=True, workers=2)
    np.testing.assert_array_equal(stored, expected)


def test_the_last_block_is_padded(tmp_path, table_bytes):
    options = {"separator": "[EOS]", "remainder": "pad"}
    _, stored = write(tmp_path / "a", TEXTS, word_tokenizer(), 64, **options)
    np.testing.assert_array_equal(stored, expected_blocks(IDS, 64, EOS, EOS))
    assert stored[-1, -1] == EOS
    _, stored = write(tmp_path / "b", TEXTS, word_tokenizer(), 64, **options, pad="[UNK]")
    np.testing.assert_array_equal(stored, expected_blocks(IDS, 64, EOS, 0))
    _, stored = write(tmp_path / "c", ["w1 w2"], word_tokenizer(), 4, remainder="pad", pad=9)
    assert stored.tolist() == [[3, 4, 9, 9]]
    _, stored = write(tmp_path / "d", ["w1 w2"], word_tokenizer(), 2, remainder="pad", pad=9)
    assert stored.tolist() == [[3, 4]]


def test_all_kinds_of_data(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    expected = expected_blocks(IDS, 64, EOS)
    samples = [{"id": k, "body": text} for k, text in enumerate(TEXTS)]
    npstream.write(tmp_path / "ds", samples)
    for number, data in enumerate(
        [samples, iter(samples), {"body": TEXTS}, pa.table({"id": IDS, "body": TEXTS}),
         pd.DataFrame(samples), npstream.open(tmp_path / "ds"), np.array(TEXTS),
         PartedInput([Part("a", lambda: samples[:50]), Part("b", lambda: samples[50:])])]
    ):  # fmt: skip
        _, stored = write(
            tmp_path / str(number), data, word_tokenizer(), 64, separator=EOS, column="body"
        )
        np.testing.assert_array_equal(stored, expected)


def test_errors_name_the_problem(tmp_path):
    tokenizer = word_tokenizer()
    with pytest.raises(ColumnError, match="have no column 'bodies': name the text's column"):
        write(tmp_path / "out", {"body": TEXTS}, tokenizer, 8, column="bodies")
    with pytest.raises(ColumnError, match="no column 'bodies'; did you mean 'body'"):
        write(tmp_path / "out", [{"body": text} for text in TEXTS], tokenizer, 8, column="bodies")
    with pytest.raises(ValueError, match="data has 3 tokens, and a block has 8: choose a smaller"):
        write(tmp_path / "out", ["w1 w2", ""], tokenizer, 8, separator=EOS)
    with pytest.raises(ValueError, match="data has 0 tokens"):
        write(tmp_path / "out", [], tokenizer, 8)
    with pytest.raises(ValueError, match="block=0"):
        token_blocks(TEXTS, tokenizer, 0)
    with pytest.raises(ValueError, match="remainder='keep': expected 'drop' or 'pad'"):
        token_blocks(TEXTS, tokenizer, 8, remainder="keep")
    with pytest.raises(ValueError, match="needs the id to fill the last block with: pad="):
        token_blocks(TEXTS, tokenizer, 8, remainder="pad")
    with pytest.raises(ValueError, match="pad= needs remainder='pad'"):
        token_blocks(TEXTS, tokenizer, 8, pad=1)
    with pytest.raises(ValueError, match="separator='</s>': the tokenizer has no such token"):
        token_blocks(TEXTS, tokenizer, 8, separator="</s>")
    with pytest.raises(TypeError, match="give its id, as tokenizer= is a function"):
        token_blocks(TEXTS, letters, 8, separator="</s>")
    with pytest.raises(ValueError, match="separator=65536: uint16 holds ids of 0 to 65,535"):
        token_blocks(TEXTS, tokenizer, 8, separator=65536)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_its_document_and_ends_the_workers(tmp_path, workers):
    data = ["w1"] * 300
    data[250] = 5
    with pytest.raises(TypeError, match="of type int: a tokenizer needs a text"):
        write(tmp_path / "out", data, word_tokenizer(), 8, workers=workers)

    def fails(text):
        if text == "w2":
            raise RuntimeError("no such word")
        return [1]

    data[250] = "w2"
    with pytest.raises(RuntimeError, match="no such word") as raised:
        write(tmp_path / "out", data, fails, 8, workers=workers)
    assert any("sample 250 of data" in note for note in raised.value.__notes__)
    assert not started_children()


def test_workers_end_after_the_last_block(tmp_path):
    data = token_blocks(TEXTS, word_tokenizer(), 8, workers=2)
    assert len(started_children()) == 2
    npstream.write(tmp_path / "out", data)
    assert not started_children()
    npstream.write(tmp_path / "again", data)  # the workers start again
    assert not started_children()


def texts_in_parts(opened=None):
    """Return the texts in parts of 30; `opened` collects the names of the opened parts."""

    def open_part(name, start):
        if opened is not None:
            opened.append(name)
        return [{"text": text} for text in TEXTS[start : start + 30]]

    starts = range(0, len(TEXTS), 30)
    return PartedInput(
        [Part(f"p{k}", lambda k=k, start=start: open_part(f"p{k}", start)) for k, start in
         enumerate(starts)]
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("data", ["parts", "samples", "rows"])
def test_a_killed_write_resumes_within_a_document(tmp_path, monkeypatch, data, workers):
    monkeypatch.setattr(blocks, "_TABLE_BYTES", 300)

    def write_to(path, resume):
        samples = [{"text": text} for text in TEXTS if text]
        if data == "parts":
            samples = texts_in_parts()
        options = {"shard_size": 1200, "resume": resume}
        if data == "rows":
            tokens = TokenMap(word_tokenizer())
            return npstream.write(path, samples, map=tokens, workers=workers, **options)
        data_blocks = token_blocks(samples, word_tokenizer(), 13, separator=EOS, workers=workers)
        return npstream.write(path, data_blocks, **options)

    assert write_to(tmp_path / "whole", False).shards > 5
    whole = local_files(tmp_path / "whole")

    def write_resumed():
        return write_to(tmp_path / "resumed", True)

    steps = count_steps(write_resumed)
    assert local_files(tmp_path / "resumed") == whole
    for first in (steps // 6, steps // 5):
        shutil.rmtree(tmp_path / "resumed")
        kills = 0
        for step in itertools.count(first, first):
            is_killed = kill_at_step(step, write_resumed)
            files = local_files(tmp_path / "resumed")
            if not is_killed or ("index.json" in files and WORK not in files):
                break
            kills += 1
        assert kills > 1
        assert local_files(tmp_path / "resumed") == whole


def test_a_write_does_not_resume_with_another_separator(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_TABLE_BYTES", 300)
    monkeypatch.setattr(blocks, "_GROUP", 8)

    def data(separator):
        for number, text in enumerate(TEXTS):
            if number == 150 and separator == EOS:
                raise ConnectionError("the source is gone")
            yield text

    def write_resumed(separator):
        data_blocks = token_blocks(data(separator), word_tokenizer(), 13, separator=separator)
        npstream.write(tmp_path / "out", data_blocks, shard_size=1200, resume=True)

    with pytest.raises(ConnectionError):
        write_resumed(EOS)
    with pytest.raises(ValueError, match="separator=: '1' then, '0' now"):
        write_resumed(0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("block", [7, 64])
def test_every_block_can_be_the_first(table_bytes, block, workers):
    """A read from the position of a block returns that block and all later ones."""
    expected = expected_blocks(IDS, block, EOS)
    options = {"separator": EOS, "workers": workers}
    first = token_blocks(texts_in_parts(), word_tokenizer(), block, **options)
    list(first._arrays(may_be_empty=False))
    positions = [first.position(number) for number in range(len(expected))]
    step = 1 if workers == 0 and block == 64 else len(expected) // 4
    for number in range(0, len(expected), step):
        later = token_blocks(texts_in_parts(), word_tokenizer(), block, **options)
        later.seek(positions[number], number)
        stored = np.concatenate(list(later._arrays(may_be_empty=False)))
        np.testing.assert_array_equal(stored, expected[number:])
        # The position of a block does not depend on where its read started.
        last_position = later.position(len(expected) - 1)
        last = token_blocks(texts_in_parts(), word_tokenizer(), block, **options)
        last.seek(last_position, len(expected) - 1)
        np.testing.assert_array_equal(
            np.concatenate(list(last._arrays(may_be_empty=False))), expected[-1:]
        )


def test_earlier_parts_are_not_opened(monkeypatch):
    monkeypatch.setattr(blocks, "_TABLE_BYTES", 1)
    first = token_blocks(texts_in_parts(), word_tokenizer(), 64, separator=EOS)
    total = sum(map(len, first._arrays(may_be_empty=False)))
    position = first.position(total - 1)
    opened = []
    later = token_blocks(texts_in_parts(opened), word_tokenizer(), 64, separator=EOS)
    later.seek(position, total - 1)
    assert sum(map(len, later._arrays(may_be_empty=False))) == 1
    assert opened == ["p6"]
    with pytest.raises(ValueError, match="is not one of token blocks"):
        later.seek(("p6", 3), 0)
