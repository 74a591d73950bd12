"""Tokenizers and texts for tests; nothing is downloaded."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

TEXTS_SEED = 1


def texts(count=200, longest=40):
    """Return texts of 0 to `longest` words."""
    generator = random.Random(TEXTS_SEED)
    words = [f"w{number}" for number in range(50)]
    return [
        " ".join(generator.choices(words, k=generator.randint(0, longest))) for _ in range(count)
    ]


@cache
def word_tokenizer(first_id=0):
    """Return a `tokenizers.Tokenizer` of whole words, whose ids begin at `first_id`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["[UNK]", "[EOS]", *(f"w{number}" for number in range(50))]
    vocabulary = {name: number + first_id for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def letters(text):
    """Return the code points of a text. Tests use this function as a tokenizer."""
    return [ord(letter) for letter in text]


def letters_of_texts(texts):
    """Return the code points of each text."""
    return [letters(text) for text in texts]


def expected_blocks(ids, block, separator=None, pad=None):
    """Return the blocks of documents, given the ids of each document's tokens."""
    stream = []
    for document in ids:
        if len(document):
            stream += [*document] if separator is None else [*document, separator]
    whole = len(stream) // block * block
    remainder = stream[whole:]
    if pad is not None and remainder:
        stream = stream[:whole] + remainder + [pad] * (block - len(remainder))
        whole += block
    return np.array(stream[:whole]).reshape(-1, block)
