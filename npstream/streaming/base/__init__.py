"""Provide the classes that programs import from ``streaming.base``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npstream.streaming.dataloader import StreamingDataLoader
    from npstream.streaming.dataset import StreamingDataset
    from npstream.streaming.local import LocalDataset
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
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module("npstream.streaming"), name)
