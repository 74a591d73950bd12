"""Provide tokenization: text becomes token ids, as arrays of any length or as blocks of one."""

from npstream.tokens.blocks import token_blocks
from npstream.tokens.encoder import TokenMap

__all__ = ["TokenMap", "token_blocks"]
