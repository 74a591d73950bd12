"""Training data as a lazily loaded NumPy array."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npstream import cache, errors
    from npstream.batch import Batch
    from npstream.build import build_index
    from npstream.column import Column
    from npstream.dataset import Dataset
    from npstream.formats.encodings import register_encoding
    from npstream.mixture import Mixture, mix
    from npstream.opening import open_dataset
    from npstream.orders.epoch import Shuffle
    from npstream.ragged import Ragged
    from npstream.streaming_settings import StreamingShuffle
    from npstream.verify import VerifyReport, verify_dataset
    from npstream.warm import precompile
    from npstream.writer import Writer, WriteReport, write

    open = open_dataset

# `open` is public as well, but a star import must not hide the builtin.
__all__ = [
    "Batch",
    "Column",
    "Dataset",
    "Mixture",
    "Ragged",
    "Shuffle",
    "StreamingShuffle",
    "VerifyReport",
    "WriteReport",
    "Writer",
    "build_index",
    "cache",
    "errors",
    "mix",
    "open_dataset",
    "precompile",
    "register_encoding",
    "verify_dataset",
    "write",
]

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "Batch": "npstream.batch:Batch",
    "Column": "npstream.column:Column",
    "Dataset": "npstream.dataset:Dataset",
    "Mixture": "npstream.mixture:Mixture",
    "Ragged": "npstream.ragged:Ragged",
    "Shuffle": "npstream.orders.epoch:Shuffle",
    "StreamingShuffle": "npstream.streaming_settings:StreamingShuffle",
    "VerifyReport": "npstream.verify:VerifyReport",
    "WriteReport": "npstream.writer:WriteReport",
    "Writer": "npstream.writer:Writer",
    "build_index": "npstream.build:build_index",
    "cache": "npstream.cache",
    "errors": "npstream.errors",
    "mix": "npstream.mixture:mix",
    "open": "npstream.opening:open_dataset",
    "open_dataset": "npstream.opening:open_dataset",
    "precompile": "npstream.warm:precompile",
    "register_encoding": "npstream.formats.encodings:register_encoding",
    "verify_dataset": "npstream.verify:verify_dataset",
    "write": "npstream.writer:write",
}
"""Where each public name is defined; it is imported when somebody first asks for it."""


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    value: Any = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
