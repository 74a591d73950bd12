"""Training data as a lazily loaded NumPy array."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npstream import errors, tokens
    from npstream.cache import cache
    from npstream.conversion.convert import ConvertPlan, convert
    from npstream.dataset.column import Column
    from npstream.dataset.dataset import Dataset
    from npstream.dataset.opening import open_dataset
    from npstream.formats.encodings.encodings import register_encoding
    from npstream.mixture.concat import concat
    from npstream.mixture.mixture import Mixture, mix
    from npstream.orders.order import Shuffle
    from npstream.orders.streaming.settings import StreamingShuffle
    from npstream.reading.batch import Batch
    from npstream.reading.ragged import Ragged
    from npstream.storage.traffic.events import on_event
    from npstream.tools.add_columns import add_columns, remove_columns
    from npstream.tools.copy import copy
    from npstream.tools.index_builder import build_index
    from npstream.tools.merge import merge
    from npstream.tools.precompile import precompile
    from npstream.tools.verify import VerifyReport, verify_dataset
    from npstream.writing.report import WriteReport
    from npstream.writing.writer import Writer, write

    open = open_dataset

# `open` is public as well, but a star import must not hide the builtin.
__all__ = [
    "Batch",
    "Column",
    "ConvertPlan",
    "Dataset",
    "Mixture",
    "Ragged",
    "Shuffle",
    "StreamingShuffle",
    "VerifyReport",
    "WriteReport",
    "Writer",
    "add_columns",
    "build_index",
    "cache",
    "concat",
    "convert",
    "copy",
    "errors",
    "merge",
    "mix",
    "on_event",
    "open_dataset",
    "precompile",
    "register_encoding",
    "remove_columns",
    "tokens",
    "verify_dataset",
    "write",
]

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "Batch": "npstream.reading.batch:Batch",
    "Column": "npstream.dataset.column:Column",
    "ConvertPlan": "npstream.conversion.convert:ConvertPlan",
    "Dataset": "npstream.dataset.dataset:Dataset",
    "Mixture": "npstream.mixture.mixture:Mixture",
    "Ragged": "npstream.reading.ragged:Ragged",
    "Shuffle": "npstream.orders.order:Shuffle",
    "StreamingShuffle": "npstream.orders.streaming.settings:StreamingShuffle",
    "VerifyReport": "npstream.tools.verify:VerifyReport",
    "WriteReport": "npstream.writing.report:WriteReport",
    "Writer": "npstream.writing.writer:Writer",
    "add_columns": "npstream.tools.add_columns:add_columns",
    "build_index": "npstream.tools.index_builder:build_index",
    "cache": "npstream.cache",
    "concat": "npstream.mixture.concat:concat",
    "convert": "npstream.conversion.convert:convert",
    "copy": "npstream.tools.copy:copy",
    "errors": "npstream.errors",
    "merge": "npstream.tools.merge:merge",
    "mix": "npstream.mixture.mixture:mix",
    "on_event": "npstream.storage.traffic.events:on_event",
    "open": "npstream.dataset.opening:open_dataset",
    "open_dataset": "npstream.dataset.opening:open_dataset",
    "precompile": "npstream.tools.precompile:precompile",
    "register_encoding": "npstream.formats.encodings.encodings:register_encoding",
    "remove_columns": "npstream.tools.add_columns:remove_columns",
    "tokens": "npstream.tokens",
    "verify_dataset": "npstream.tools.verify:verify_dataset",
    "write": "npstream.writing.writer:write",
}
"""The definition of each public name, which is imported at the first access."""

_ALTERNATIVES = {
    **dict.fromkeys(("load", "read", "load_dataset", "load_from_disk"), "npstream.open"),
    **dict.fromkeys(("StreamingDataset", "IterableDataset", "from_disk"), "npstream.open"),
    **dict.fromkeys(("merge_index", "join"), "npstream.merge"),
    **dict.fromkeys(("save", "dump", "to_disk", "write_dataset", "from_dict"), "npstream.write"),
    **dict.fromkeys(("MDSWriter", "ShardWriter", "open_writer"), "npstream.Writer"),
    **dict.fromkeys(("concatenate", "concatenate_datasets", "chain"), "npstream.concat"),
    **dict.fromkeys(("interleave", "interleave_datasets", "Stream"), "npstream.mix"),
    **dict.fromkeys(
        ("Loader", "DataLoader", "StreamingDataLoader"),
        "npstream.torch.DataLoader, after import npstream.torch; or ds.iter, without torch",
    ),
}
"""Names of functions and classes in other libraries, and their counterparts in npstream."""


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_hint(name)}")
    module, _, attribute = _EXPORTS[name].partition(":")
    value: Any = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def _hint(name: str) -> str:
    """Return a suggestion for an unknown name, as the end of an error message."""
    if name in ("torch", "testing", "streaming"):
        return f": write import {__name__}.{name}"
    if name.startswith("_"):
        return ""
    if name in _ALTERNATIVES:
        return f"; use {_ALTERNATIVES[name]}"
    import difflib

    matches = difflib.get_close_matches(name, _EXPORTS, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
