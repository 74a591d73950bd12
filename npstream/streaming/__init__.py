"""Provide the classes of MosaicML Streaming under their names, for programs written for it.

Nothing here imports torch before a class that needs it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npstream.streaming import base
    from npstream.streaming.dataframes import dataframe_to_mds
    from npstream.streaming.dataloader import StreamingDataLoader
    from npstream.streaming.dataset import StreamingDataset
    from npstream.streaming.local import LocalDataset
    from npstream.streaming.merging import merge_index
    from npstream.streaming.stream import Stream
    from npstream.streaming.writers import (
        CSVWriter,
        JSONWriter,
        MDSWriter,
        TSVWriter,
        XSVWriter,
    )

__all__ = [
    "CSVWriter",
    "JSONWriter",
    "LocalDataset",
    "MDSWriter",
    "Stream",
    "StreamingDataLoader",
    "StreamingDataset",
    "TSVWriter",
    "XSVWriter",
    "base",
    "dataframe_to_mds",
    "merge_index",
]

_MODULES = {
    **dict.fromkeys(("CSVWriter", "JSONWriter", "MDSWriter", "TSVWriter", "XSVWriter"), "writers"),
    "LocalDataset": "local",
    "Stream": "stream",
    "StreamingDataLoader": "dataloader",
    "StreamingDataset": "dataset",
    "dataframe_to_mds": "dataframes",
    "merge_index": "merging",
}
"""The module of each class and function, which is imported at the first access."""


def __getattr__(name: str) -> Any:
    if name == "base":
        return importlib.import_module(f"{__name__}.base")
    if name not in _MODULES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
