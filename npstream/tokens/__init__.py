"""Provide tokenization: text becomes arrays of token ids, or blocks of ids of a fixed length."""

from npstream.tokens.blocks import token_blocks
from npstream.tokens.encoder import TokenMap

__all__ = ["TokenMap", "token_blocks"]
