"""Provide `ResumeSession`, which records the progress of a write, and resumes from the record.

Tested in tests/writing/resumption/test_resume.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from npstream._core.typing import Body
from npstream.formats.hashes import digest
from npstream.storage.local import LocalStore
from npstream.writing.inputs.parts import PartedInput
from npstream.writing.resumption.local import ResumableDirectory
from npstream.writing.resumption.positions import InputTracker
from npstream.writing.resumption.records import (
    Checkpoint,
    ShardRecord,
    decode_record,
    difference_error,
    encode_record,
    settings_differences,
)
from npstream.writing.resumption.remote import ResumableUrl
from npstream.writing.resumption.revisions import ResumableLocalRevision, ResumableRemoteRevision

if TYPE_CHECKING:
    from npstream.formats.scan import ScanResult
    from npstream.storage.local import Store
    from npstream.writing.formats import FormatSettings
    from npstream.writing.inputs.fill import Fill
    from npstream.writing.report import RejectedSample, Rejects
    from npstream.writing.shard import ShardFormat
    from npstream.writing.workers import WorkerResult

__all__ = ["ResumableInput", "ResumeSession"]

ResumableDestination: TypeAlias = ResumableDirectory | ResumableUrl


class ResumableInput(NamedTuple):
    """The input of a write that can resume.

    Attributes
    ----------
    parts : PartedInput or None
        The user's data, if it is made of parts.
    description : dict
        Properties of the data that are known before it is read, such as its length. The keys are
        their names in messages. A write resumes only with the same description.
    """

    parts: PartedInput | None
    description: dict[str, Any]

    @classmethod
    def describe(cls, data: Any, table: Any, is_mapped: bool) -> ResumableInput:
        """Return the description of the user's data.

        Parameters
        ----------
        data : object
            The argument `data` of `npstream.write`.
        table : InputTable, TableStream or None
            The data as a table, if it is one.
        is_mapped : bool
            Whether the data is for `map=`.
        """
        description: dict[str, Any] = {"map=": is_mapped}
        if isinstance(data, PartedInput):
            names = "\n".join(part.name for part in data.parts)
            description["parts of data"] = len(data.parts)
            description["hash of the names of the parts"] = digest("xxh3_128", names.encode())
            description.update(data.description)
            return cls(data, description)
        description["data"] = "samples" if table is None else "a table or tables"
        length = getattr(table, "length", None)
        if length is None and hasattr(type(data), "__len__"):
            with suppress(TypeError):  # such as torch's IterableDataset
                length = len(data)
        description["length of data"] = length
        return cls(None, description)


class ResumeSession:
    """The progress of a write that can resume.

    A shard is whole if its files and its record are stored, and all shards before it are whole.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    source : ResumableInput
        The input of the write.
    mode : {"x", "w", "a"}
    exclusive : bool
        Whether the caller guarantees that no other process writes there.

    Attributes
    ----------
    destination : ResumableDirectory or ResumableUrl
        The destination of the write. With the modes "w" and "a" it is a Revision, too.
    last : Checkpoint or None
        Where the interrupted write was at the end of its last whole shard.
    """

    def __init__(self, store: Store, source: ResumableInput, mode: str, exclusive: bool) -> None:
        self.destination: ResumableDestination
        if isinstance(store, LocalStore):
            self.destination = (
                ResumableDirectory(store)
                if mode == "x"
                else ResumableLocalRevision(store, mode, exclusive)
            )
        else:
            self.destination = (
                ResumableUrl(store)
                if mode == "x"
                else ResumableRemoteRevision(store, mode, exclusive)
            )
        self._settings = {**({} if mode == "x" else {"mode": mode}), **source.description}
        self._parts = source.parts
        self._tracker = InputTracker(0, 0, (0, 0))
        self._has_row_hash = False
        self._is_last_row_checked = False
        self._rejects: Rejects | None = None
        self.last: Checkpoint | None = None

    @property
    def is_published(self) -> bool:
        """Whether the interrupted write has published its index."""
        saved = self.destination.saved
        return saved is not None and saved.index is not None

    @property
    def is_complete(self) -> bool:
        """Whether the interrupted write has stored all samples."""
        saved = self.destination.saved
        return saved is not None and saved.publication is not None

    @property
    def input_samples(self) -> int:
        """The number of input samples that the interrupted write has stored or left out."""
        saved = self.destination.saved
        if saved is not None and saved.publication is not None:
            return int(saved.publication["input"])
        return 0 if self.last is None else self.last.number + 1

    @property
    def rejected_count(self) -> int:
        """The number of samples that the interrupted write has left out."""
        saved = self.destination.saved
        if saved is not None and saved.publication is not None:
            return int(saved.publication["rejected"])
        return 0 if self.last is None else self.last.reject_state[0]

    # The interrupted write

    @property
    def saved_settings(self) -> dict[str, Any]:
        """The settings of the interrupted write; empty if there is none."""
        saved = self.destination.saved
        return {} if saved is None else saved.settings

    def set_settings(
        self,
        format_settings: FormatSettings,
        shard_samples: int | None,
        sidecar: bool,
        fill: Mapping[str, Fill],
        rejects: Rejects | None,
    ) -> None:
        """Set the settings of this write that are not part of the layout."""
        settings = {
            **format_settings.describe(),
            "shard_samples": shard_samples,
            "sidecar": sidecar,
            "fill": sorted((name, repr(each.value)) for name, each in fill.items()),
            "on_error": "raise" if rejects is None else "skip",
        }
        self._settings = {**settings, **self._settings}

    @property
    def saved_columns(self) -> dict[str, str] | None:
        """The encodings of the interrupted write, if there is one."""
        saved = self.destination.saved
        return None if saved is None else dict(saved.settings["columns"])

    def start(self, layout: ShardFormat, is_inferred: bool) -> None:
        """Set the layout, and check that an interrupted write has the same settings.

        Raises
        ------
        ValueError
            If a setting differs.
        """
        columns = [[name, encoding.name] for name, encoding in layout.columns_in_order.items()]
        kinds = layout.columns.values()
        # Other encodings of objects, such as pickle, may give other bytes for the same value.
        self._has_row_hash = all(e.kind != "object" or e.name == "json" for e in kinds)
        settings = {"columns": columns, "columns are inferred": is_inferred, **self._settings}
        settings = json.loads(json.dumps(settings))
        self.destination.settings = settings
        saved = self.destination.saved
        if saved is not None:
            differences = settings_differences(_flatten(saved.settings), _flatten(settings))
            if differences:
                path, files = self.destination.path, self.destination.remaining_files
                raise difference_error(path, differences, files)

    def records(self) -> Iterator[ShardRecord]:
        """Yield the records of the whole shards, and set `last`."""
        saved = self.destination.saved
        if saved is None:
            return
        if saved.index is not None:
            for entry in json.loads(saved.index)["shards"]:
                # A published write reads no more input, so the checkpoint is not used.
                yield ShardRecord(entry, Checkpoint(0, 0, None, "", (0, 0)), None)
            return
        for body in saved.bodies:
            record = decode_record(body)
            self.last = record.checkpoint
            yield record

    def restore(self, rows: int, rejects: Rejects | None) -> None:
        """Start to track the input; `rows` is the number of rows of the whole shards."""
        self._rejects = rejects
        reject_state = (0, 0) if self.last is None else self.last.reject_state
        if rejects is not None:
            if self.is_complete:
                rejects.count = self.rejected_count
            else:
                rejects.resume(*reject_state)
        self._tracker = InputTracker(rows, self.input_samples, reject_state)
        if self._parts is not None and self.last is not None:
            assert self.last.part is not None
            self._parts.seek(self.last.part, self.last.number)

    @property
    def has_parts(self) -> bool:
        """Whether the input is made of parts. They are read from the last stored sample on."""
        return self._parts is not None

    def check_row(self, row: Body) -> None:
        """Raise ValueError unless `row` has the bytes of the last row that is stored."""
        assert self.last is not None
        self._is_last_row_checked = True
        if self.last.row_hash not in ("", digest("xxh3_128", bytes(row))):
            raise ValueError(
                f"sample {self.last.number} of data differs from the one that the interrupted "
                f"write stored: resume=True needs the same data{_and_map(self._settings)} in the "
                f"same order; write the same data, or remove {self.destination.remaining_files}"
            )

    def set_encoder(self, layout: ShardFormat, encode: Callable[[Any, int], bytes]) -> None:
        """Set the layout, and the function that encodes a sample, given its number."""
        self.layout, self._encode = layout, encode

    def check_sample(self, sample: Any) -> None:
        """Raise ValueError if the last row that is stored is not this sample."""
        assert self.last is not None
        self.check_row(self._encode(sample, self.last.number))

    def require_checked(self) -> None:
        """Raise ValueError if the input ended before the last row that is stored."""
        if self.last is not None and not self._is_last_row_checked:
            raise self.missing_input_error()

    def drop_stored(self, result: WorkerResult) -> None:
        """Drop those rows of a worker's result that are stored, and check the last of them."""
        last = self.last
        if last is None or self._is_last_row_checked:
            return
        row = result.drop((last.number, last.output))
        if row is not None:
            self.check_row(row)
        elif result.first > last.number or result.numbers:
            # The workers have passed the position of the last stored row, and no row had it.
            raise self.missing_input_error()

    def missing_input_error(self) -> ValueError:
        """Return the error for an input that ends before the last row that is stored."""
        assert self.last is not None
        return ValueError(
            f"data ends before sample {self.last.number}, which the interrupted write stored: "
            f"resume=True needs the same data{_and_map(self._settings)}; write the same data, or "
            f"remove {self.destination.remaining_files}"
        )

    # Progress

    def add_output(self, row: int, number: int, output: int) -> None:
        """Record that row `row` is output number `output` of `map=` for input sample `number`."""
        self._tracker.add_output(row, number, output)

    def add_batch(self, row: int, numbers: Sequence[int], outputs: Sequence[int]) -> None:
        """Record the input samples of the rows that a worker encoded."""
        self._tracker.add_batch(row, numbers, outputs)

    def add_reject(self, rejected: RejectedSample, row: int | None) -> None:
        """Record a sample that is left out.

        `row` is the number of the next row, which comes from the next sample. It is None if
        `add_output` records the sample of that row.
        """
        assert self._rejects is not None
        reject_state = self._rejects.count, self._rejects.nbytes
        self._tracker.add_reject(rejected.number, rejected.output, reject_state)
        if row is not None:
            self._tracker.skip(row, rejected.number + 1)

    def checkpoint(self, rows: int, last_row: Body) -> Checkpoint:
        """Return where the write is after a shard that ends with row number ``rows - 1``."""
        number, output = self._tracker.position(rows - 1)
        reject_state = self._tracker.rejected_before((number, output))
        if self._rejects is not None:
            self._rejects.sync(reject_state[1])
        part = None if self._parts is None else self._parts.position(number)
        row_hash = digest("xxh3_128", bytes(last_row)) if self._has_row_hash else ""
        return Checkpoint(number, output, part, row_hash, reject_state)

    def record(
        self, number: int, entry: dict[str, Any], checkpoint: Checkpoint, scan: ScanResult | None
    ) -> None:
        """Record a stored shard. Several threads may call it at once."""
        self.destination.record(number, encode_record(ShardRecord(entry, checkpoint, scan)))

    def finish_input(self, number: int, rejected: int) -> None:
        """Record that the input ended before sample `number`."""
        self.destination.totals = {"input": number, "rejected": rejected}

    def finish_shards(self, entries: list[dict[str, Any]]) -> None:
        """Record the index entries of all shards, before a Revision is published."""
        text = json.dumps(entries, sort_keys=True).encode()
        self.destination.totals["entries"] = digest("xxh3_128", text)


def _and_map(settings: Mapping[str, Any]) -> str:
    return ", and a map= that returns the same," if settings.get("map=") else ""


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with one entry for each column."""
    others = {name: value for name, value in settings.items() if name != "columns"}
    others.setdefault("mode", "x")
    columns = {f"column {name!r}": encoding for name, encoding in settings["columns"]}
    return {**columns, "order of columns": [name for name, _ in settings["columns"]], **others}
