"""Datasets of npstream and of Streaming as a source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from npstream.conversion.source import InputSource, SourceRequest
from npstream.dataset.opening import open_dataset
from npstream.writing.inputs.parts import Part
from npstream.writing.tables import table_encodings

if TYPE_CHECKING:
    from npstream.conversion.files import FileList
    from npstream.dataset.dataset import Dataset

__all__ = ["MdsSource"]

_INDEX = "index.json"


class MdsSource(InputSource):
    """A dataset in a format that `npstream.open` reads: MDS, or shards of text.

    Stored bytes are copied, unless a column gets another encoding. Each shard is a part.
    """

    kind = "mds"
    extensions = ()
    OPTIONS: ClassVar[tuple[str, ...]] = (
        "allow_pickle", "cache", "cache_limit", "index", "verify", "version",
    )  # fmt: skip

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        if files.root is None:
            raise ValueError(
                f"{files.where}: a dataset is a directory: give the one that holds {_INDEX}"
            )
        dataset = open_dataset(
            files.root, storage_options=dict(files.options) or None, **request.options
        )
        names = self.select_columns(dataset.columns, files.where)
        self._dataset: Dataset = dataset[names]
        self.samples = len(dataset)
        table = self._dataset._writer_input()
        assert table is not None  # a dataset that was just opened has no transform
        stored = {name: encoding.name for name, encoding in table_encodings(table).items()}
        self.columns = {name: request.encodings.get(name, stored[name]) for name in stored}

    @classmethod
    def recognizes(cls, files: FileList) -> bool:
        """Return True for a directory with an index of shards."""
        index = next((file for file in files.files if file.name == _INDEX), None)
        if files.root is None or index is None:
            return False
        with index.open() as opened:
            try:
                return "shards" in json.load(opened)
            except (ValueError, TypeError):
                return False

    def parts(self) -> Sequence[Part]:
        """Return a part for each shard that has samples."""
        shards = self._dataset.shards
        spans = zip(shards["start"].tolist(), shards["samples"].tolist(), strict=True)
        return [
            Part(name, partial(_rows, self._dataset, start, start + count), count)
            for name, (start, count) in zip(shards["name"].tolist(), spans, strict=True)
            if count
        ]


def _rows(dataset: Dataset, start: int, stop: int) -> Dataset:
    rows: Dataset = dataset[start:stop]
    return rows
