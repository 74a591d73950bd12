"""TokenMap: tokenizers, dtypes, ids out of range, worker processes, errors that name the sample."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizing import letters, letters_of_texts, texts, word_tokenizer

import npstream
from npstream.errors import ColumnError
from npstream.tokens import TokenMap

pytest.importorskip("tokenizers")

TEXTS = [text for text in texts() if text]


def rows(path):
    return [row.tolist() for row in npstream.open(path)["tokens"].load()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["tokenizers", "function", "batched"])
def test_ids_are_those_of_the_tokenizer_in_the_order_of_the_samples(tmp_path, workers, kind):
    tokenizer = word_tokenizer()
    function, options, expected = {
        "tokenizers": (tokenizer, {}, [tokenizer.encode(text).ids for text in TEXTS]),
        "function": (letters, {}, letters_of_texts(TEXTS)),
        "batched": (letters_of_texts, {"batched": True}, letters_of_texts(TEXTS)),
    }[kind]
    samples = [{"id": k, "text": text, "label": k % 3} for k, text in enumerate(TEXTS)]
    tokenize = TokenMap(function, **options)
    report = npstream.write(tmp_path / "out", samples, map=tokenize, workers=workers)
    dtype = "uint16" if kind == "tokenizers" else "uint32"
    assert report.columns == {"id": "int", "tokens": f"ndarray:{dtype}", "label": "int"}
    assert rows(tmp_path / "out") == expected
    assert npstream.open(tmp_path / "out")["id"].load().tolist() == list(range(len(TEXTS)))


def test_a_batch_is_one_call():
    calls = []

    def tokenizer(texts):
        calls.append(len(texts))
        return letters_of_texts(texts)

    batch = [{"text": text} for text in TEXTS]
    function = TokenMap(tokenizer, batched=True).for_batch(batch)
    assert [function(sample)["tokens"].tolist() for sample in batch] == letters_of_texts(TEXTS)
    assert calls == [len(TEXTS)]


def test_the_dtype_follows_from_the_ids_of_the_tokenizer():
    assert TokenMap(word_tokenizer()).encoding == "ndarray:uint16"
    # The 52 ids of a tokenizer begin at the argument, and uint16 holds ids below 1 << 16.
    assert TokenMap(word_tokenizer((1 << 16) - 52)).encoding == "ndarray:uint16"
    assert TokenMap(word_tokenizer((1 << 16) - 51)).encoding == "ndarray:uint32"
    assert TokenMap(letters).encoding == "ndarray:uint32"
    assert TokenMap(letters, dtype=np.uint16).encoding == "ndarray:uint16"
    with pytest.raises(ValueError, match="uint16 holds 65,536 ids, and the tokenizer has 65,537"):
        TokenMap(word_tokenizer((1 << 16) - 51), dtype="uint16")
    with pytest.raises(ValueError, match="dtype int32: token ids are stored as uint16 or uint32"):
        TokenMap(letters, dtype="int32")


class BatchEncoding(dict):
    """Stands in for the result of a tokenizer of `transformers`."""


def test_tokenizers_of_transformers_return_mappings():
    pytest.importorskip("transformers")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer())
    sample = {"text": "w1 w2"}
    assert TokenMap(tokenizer)(sample)["tokens"].tolist() == [3, 4]


def test_results_with_input_ids():
    tokenize = TokenMap(lambda text: BatchEncoding(input_ids=letters(text)))
    assert tokenize("ab")["tokens"].tolist() == [97, 98]
    tokenize = TokenMap(lambda texts: {"input_ids": letters_of_texts(texts)}, batched=True)
    function = tokenize.for_batch(["a", "b"])
    assert [function(text)["tokens"].tolist() for text in ("a", "b")] == [[97], [98]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        ([70000], ValueError, "id 70000, which uint16 cannot hold.* 0 to 65,535"),
        ([-1], ValueError, "id -1, which uint16 cannot hold"),
        ([0.5], TypeError, "expected a list of integers"),
        ([[1]], TypeError, "expected a list of integers"),
        (3, TypeError, "expected a list of integers"),
        ("text", TypeError, "expected a list of integers"),
        (None, TypeError, "expected a list of integers"),
    ],
    ids=repr,
)
def test_results_that_are_no_ids_name_the_sample(tmp_path, workers, result, kind, message):
    def tokenizer(text):
        return result if text == "bad" else [1]

    samples = [{"text": "good"}] * 3 + [{"text": "bad"}]
    with pytest.raises(kind, match=message) as raised:
        npstream.write(
            tmp_path / "out", samples, map=TokenMap(tokenizer, dtype="uint16"), workers=workers
        )
    assert "in map=, sample 3 of data" in raised.value.__notes__
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_batch_names_its_sample(tmp_path, workers):
    samples = [{"text": "w1"}] * 40
    samples[25] = {"text": None}
    with pytest.raises(TypeError, match="takes text, and this is of type NoneType") as raised:
        npstream.write(tmp_path / "out", samples, map=TokenMap(word_tokenizer()), workers=workers)
    assert "in map=, sample 25 of data" in raised.value.__notes__
    samples[25] = {"txt": "w1"}
    with pytest.raises(ColumnError, match="no column 'text'; did you mean 'txt'"):
        npstream.write(tmp_path / "out", samples, map=TokenMap(word_tokenizer()), workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_text_without_tokens_is_refused_or_left_out(tmp_path, workers):
    samples = ["w1", "w2 w3", "", "w4"]
    tokenize = TokenMap(word_tokenizer())
    with pytest.raises(ValueError, match=r"sample 2: column 'tokens'.*shape \(0,\)"):
        npstream.write(tmp_path / "out", samples, map=tokenize, workers=workers)
    report = npstream.write(
        tmp_path / "out", samples, map=tokenize, workers=workers, on_error="skip"
    )
    assert (report.samples, report.rejected) == (3, 1)
    assert rows(tmp_path / "out") == [[3], [4, 5], [6]]


def test_invalid_arguments_and_results_raise():
    with pytest.raises(TypeError, match="tokenizer= is of type int: expected a callable"):
        TokenMap(3)
    with pytest.raises(ValueError, match="has a column 'tokens' already: name another for the ids"):
        TokenMap(letters)({"text": "a", "tokens": [1]})
    assert TokenMap(letters, "body", name="ids")({"body": "a"})["ids"].tolist() == [97]
    with pytest.raises(ValueError, match="for a list of 2 texts: expected a list of ids for each"):
        TokenMap(lambda texts: [[1]], batched=True)._encoder.encode(["a", "b"])
