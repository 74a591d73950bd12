"""Provide the steps of a Writer: encode samples and tables, store shards, publish the index.

Tested in tests/writing/test_writer.py.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import AnyArray, Bytes, Int64
from npstream.errors import ColumnError, is_own_frame
from npstream.storage.local import open_store
from npstream.writing.destination import destination
from npstream.writing.formats import parse_settings
from npstream.writing.inputs.fill import check_fill, fill_sample
from npstream.writing.inputs.recognition import as_mapping, foreign_table, table_of
from npstream.writing.mapping import MapFunction, Position, apply_map, table_rows, track_position
from npstream.writing.pipeline import ShardPipeline
from npstream.writing.report import REFUSALS, RejectedSample, WriteReport, count_bytes, make_rejects
from npstream.writing.resumption.session import ResumableInput, ResumeSession
from npstream.writing.resumption.skipping import packed_row, skip_input
from npstream.writing.revisions.base import arguments_for_append, check_columns, new_document
from npstream.writing.revisions.publication import Revision, publish_shards, revision
from npstream.writing.rows import (
    SampleEncoder,
    check_mapping,
    check_names,
    encode_none,
    refuse_unknown_columns,
)
from npstream.writing.settings import check_column_list, check_mode, check_shard_samples, hash_names
from npstream.writing.shard import Bodies, ColumnBlock, ShardFormat
from npstream.writing.sidecar import sidecar_files
from npstream.writing.tables import (
    InputTable,
    RowError,
    StoredSamples,
    TableStream,
    sample_numbers,
    table_encodings,
)

if TYPE_CHECKING:
    from os import PathLike

    from npstream.formats.encodings.encodings import Encoding
    from npstream.writing.destination import Destination
    from npstream.writing.revisions.base import Base
    from npstream.writing.workers import WorkerPool

__all__ = ["WriterEngine"]

BLOCK_BYTES = 1 << 23
"""Approximate bytes of a block of a table's rows, which are encoded together."""

BLOCK_ROWS = 1 << 16
"""Maximum rows of a block, so that the kernels' address arrays stay in the processor's cache."""

MIN_UNCOPIED_BYTES = 256
"""Minimum average size of memory-mapped samples that are copied only when their shard is stored.

A writer keeps the address of each such sample. Smaller samples are copied at once, because their
addresses would take much memory compared to the samples.
"""

FIRST_ROWS = 64
"""Rows of the first block if the size of rows is unknown."""


class WriterEngine:
    """The private methods of `Writer`, which is the only subclass."""

    def _configure(
        self,
        columns: Mapping[str, str | Encoding] | Sequence[str] | None,
        *,
        fill: Mapping[str, Any] | None,
        on_error: str,
        max_errors: int | None,
        rejects: str | PathLike[str] | None,
        format: str | None,
        separator: str | None,
        newline: str | None,
        shard_size: int | str | None,
        compression: str | None,
        hashes: Iterable[str],
        mode: str,
        exclusive: bool,
        resume: bool = False,
    ) -> None:
        """Check and store the settings of the encoding of samples."""
        self._start = time.perf_counter()
        check_mode(mode, exclusive)
        self._mode, self._exclusive = mode, exclusive
        self._columns = columns
        self._arguments: dict[str, Any] = {
            "format": format, "separator": separator, "newline": newline, "shard_size": shard_size,
            "compression": compression, "hashes": hash_names(hashes),
        }  # fmt: skip
        # An append's format is not known yet: "mds" stands for it until `_adopt` reads the dataset.
        is_format_known = mode != "a"
        self._settings = parse_settings(
            **{**self._arguments, "format": format or "mds"}
            if is_format_known
            else {**self._arguments, "format": "mds", "separator": None, "newline": None}
        )
        self._fill = check_fill(fill)
        self._is_inferred = columns is None
        self._selection = check_column_list(columns)
        self._weakly_typed: frozenset[str] = frozenset()  # columns of Python values
        self._encoder: SampleEncoder | None = None
        self._encode_dict: Callable[[dict[str, Any]], bytes | None] = encode_none
        self._position: Position | None = None
        if columns is not None and self._selection is None and is_format_known:
            self._encoder = SampleEncoder(self._settings.new_format(columns), False, self._fill)
        self._rejects = make_rejects(on_error, max_errors, rejects, keep=resume)

    def _connect(
        self,
        path: str | PathLike[str],
        sidecar: bool,
        shard_samples: int | None,
        storage_options: Mapping[str, Any] | None,
        timeout: float,
        retries: int,
        source: ResumableInput | None = None,
    ) -> None:
        """Open the destination. The write can resume if `source` is given."""
        count = check_shard_samples(shard_samples)
        store = open_store(path, storage_options, timeout=timeout, retries=retries)
        self._session: ResumeSession | None = None
        self._report: WriteReport | None = None
        self._row_bytes = 0  # average bytes of the rows that `_append` added last
        self._destination: Destination
        if source is None and self._mode == "x":
            self._destination = destination(store)
        elif source is None:
            self._destination = revision(store, self._mode, self._exclusive)
        else:
            self._session = ResumeSession(store, source, self._mode, self._exclusive)
            self._destination = self._session.destination
        # Removes the files also if this Writer is garbage-collected without `close`.
        self._finalizer = weakref.finalize(self, _remove, self._destination)
        self._open = True
        self._shards = ShardPipeline(self._destination, count, sidecar=sidecar)
        if self._session is None:
            self._destination.prepare()
            if isinstance(self._destination, Revision) and self._mode == "a":
                self._adopt(self._destination.base, {})
            if self._encoder is not None:
                self._shards.start(self._encoder.layout)
        else:
            with self._discard_on_error():
                self._destination.prepare()
                self._restore(self._session, count, bool(sidecar))

    def _restore(self, session: ResumeSession, shard_samples: int | None, sidecar: bool) -> None:
        """Go on after the shards that an interrupted write has stored."""
        if isinstance(self._destination, Revision) and self._mode == "a":
            self._adopt(self._destination.base, session.saved_settings)
        session.set_settings(self._settings, shard_samples, sidecar, self._fill, self._rejects)
        columns = session.saved_columns
        if self._encoder is None and columns is not None:
            layout = self._settings.new_format(columns, inferred=True)
            self._encoder = SampleEncoder(layout, self._is_inferred, self._fill)
        if self._encoder is not None:
            session.start(self._encoder.layout, self._is_inferred)
        self._shards.restore(session, None if self._encoder is None else self._encoder.layout)
        session.restore(self._shards.samples, self._rejects)

    @property
    def _is_complete(self) -> bool:
        """Whether an interrupted write has stored all samples."""
        return self._session is not None and self._session.is_complete

    def _adopt(self, base: Base | None, saved: Mapping[str, Any]) -> None:
        """Use the dataset's columns and format; `saved` has an interrupted append's settings."""
        self._settings = parse_settings(**arguments_for_append(self._arguments, base, saved))
        if base is None:  # the append makes a new dataset
            if isinstance(self._columns, Mapping):
                layout = self._settings.new_format(self._columns)
                self._encoder = SampleEncoder(layout, False, self._fill)
            return
        if saved:  # another write may have replaced the dataset
            check_columns(base, self._settings.new_format(dict(saved["columns"]), inferred=True))
        columns = self._columns
        if columns is None:
            columns = base.columns
        elif not isinstance(columns, Mapping):
            columns = base.select(columns)
        elif self._is_inferred or self._selection is not None:  # inferred from a table
            columns = base.reconcile(columns, self._weakly_typed)
        layout = self._settings.new_format(columns)
        check_columns(base, layout)
        self._encoder = SampleEncoder(layout, self._is_inferred, self._fill)
        if base.entries:
            self._shards.extend_sidecar(base.sidecar)

    @property
    def _format(self) -> ShardFormat | None:
        return None if self._encoder is None else self._encoder.layout

    def _write(self, sample: Any) -> None:
        row = self._encode_dict(sample) if type(sample) is dict else None
        if row is None:
            row = self._encode_any(sample)
            if row is None:
                return
        shards = self._shards
        cost = len(row) + shards.sample_bytes
        nbytes = shards.nbytes + cost
        if nbytes > shards.soft_limit:
            nbytes = self._reserve(cost)
        try:
            shards.rows.append(row)
            shards.nbytes = nbytes
        except BaseException as error:  # an interruption between the two statements
            self._discard(error)
            raise

    def _write_samples(self, samples: Iterable[Any]) -> None:
        """Write samples as `_write` does, for a caller that discards all after an exception."""
        try:
            self._write_all(samples)
        except Exception as error:
            # If the frame after `_write_all` is not of this package, the iterator raised.
            frame = error.__traceback__ and error.__traceback__.tb_next
            if self._position is None and frame and not is_own_frame(frame.tb_next):
                number = self._next_number()
                error.add_note(f"raised by data, instead of sample {number}")
            raise

    def _write_all(self, samples: Iterable[Any]) -> None:
        shards, encode = self._shards, self._encode_dict
        append, nbytes, soft_limit = shards.rows.append, shards.nbytes, shards.soft_limit
        for sample in samples:
            row = encode(sample) if type(sample) is dict else None
            if row is None:
                shards.nbytes = nbytes
                row = self._encode_any(sample)
                encode, nbytes, soft_limit = self._encode_dict, shards.nbytes, shards.soft_limit
                if row is None:
                    continue
            end = nbytes + len(row) + shards.sample_bytes
            if end > soft_limit:
                shards.nbytes = nbytes
                end = self._reserve(len(row) + shards.sample_bytes)
                soft_limit = shards.soft_limit
            append(row)
            nbytes = end
        shards.nbytes = nbytes

    def _reserve(self, nbytes: int) -> int:
        """Store the shard if `nbytes` more do not fit; return the size of the shard with them."""
        with self._discard_on_error():
            self._shards.reserve(nbytes)
        end = self._shards.nbytes + nbytes
        self._shards.layout.check_end(end, self._shards.samples)
        return end

    def _encode_any(self, sample: Any) -> bytes | None:
        """Return the bytes of any sample; None if the caller has nothing to write.

        It returns None after it wrote the rows of a table, and for a sample that is left out.
        """
        self._check_open()
        if type(sample) is not dict and hasattr(type(sample), "_writer_input"):
            table = table_of(sample)
            if table is not None:
                assert not isinstance(table, TableStream)
                if self._fill:
                    self._write_rows(table)
                else:
                    self._write_any_table(table, at_once=isinstance(sample, Mapping))
                return None
        number = self._next_number()
        output = 0 if self._position is None else self._position.output
        is_tuple = isinstance(sample, tuple | list)
        if not is_tuple and not isinstance(sample, Mapping) and self._write_foreign(sample, number):
            return None
        try:
            if not isinstance(sample, dict):
                sample = as_mapping(sample, self._user_columns(), number)
            if self._encoder is None:
                check_mapping(sample, number)
                check_names(sample, number)
                first = fill_sample(sample, self._fill, {})
                layout = self._settings.infer_format(first, self._selection, number)
            else:
                layout = self._encoder.layout
                row = self._encoder.encode(sample, number)
        except REFUSALS as error:
            if self._rejects is None:
                raise
            self._reject(RejectedSample.from_sample(sample, number, error, output))
            return None
        if self._encoder is None:
            self._set_format(layout)
            return self._encode_any(sample)
        self._encode_dict = self._encoder.fast
        return row

    def _user_columns(self) -> Collection[str] | None:
        """Return the columns that the user named, in the user's order; None without `columns`."""
        if self._format is None or self._is_inferred:
            return self._selection
        return self._format.annotations.order or list(self._format.columns)

    def _next_number(self) -> int:
        """Return the number that the next sample has in the input."""
        if self._position is not None:
            return self._position.number
        return self._shards.samples + (0 if self._rejects is None else self._rejects.count)

    def _reject(self, rejected: RejectedSample) -> None:
        """Record a sample that is left out; raise if there are more than `max_errors`."""
        assert self._rejects is not None
        with self._discard_on_error():
            self._rejects.add(rejected)
            if self._session is not None:
                row = self._shards.samples if self._position is None else None
                self._session.add_reject(rejected, row)

    def _set_format(self, layout: ShardFormat) -> None:
        if self._encoder is None:
            self._encoder = SampleEncoder(layout, self._is_inferred, self._fill)
            if self._session is not None:
                self._session.start(layout, self._is_inferred)
            self._shards.start(layout)

    def _write_input(
        self,
        table: InputTable | TableStream | None,
        samples: Iterable[Any],
        function: MapFunction | None,
        pool: WorkerPool | None,
        by_rows: bool,
    ) -> None:
        """Write the data of `npstream.write`: a table, or samples if there is none.

        If `by_rows` is True, the rows of a table are written one by one.
        """
        first, session = 0, self._session
        if session is not None:
            if self._is_complete:
                return
            if session.last is not None:
                table, samples = self._skip_input(table, samples, function is not None, by_rows)
                # With a function, the last stored sample comes again: it may have more outputs.
                first = session.last.number + (function is None)
        if table is not None and function is not None:
            samples = table_rows(table)
            table = None
        if table is not None and by_rows:
            self._write_rows(table)
        elif table is not None:
            self._write_any_table(table)
        elif pool is not None:
            self._write_results(pool, samples, first)
        elif function is not None:
            self._write_samples(self._map_samples(function, samples, first))
        else:
            self._write_samples(samples)
        if session is not None:
            session.require_checked()

    def _map_samples(
        self, function: MapFunction, samples: Iterable[Any], first: int
    ) -> Iterator[Any]:
        """Yield the results of the user's function; `first` is the number of the first sample."""
        self._position = position = Position()
        for sample in track_position(samples, position, first):
            outputs = apply_map(function, sample, position.number)
            yield from outputs if self._session is None else self._track(outputs, self._session)

    def _track(self, outputs: Iterator[Any], session: ResumeSession) -> Iterator[Any]:
        """Yield those outputs for one sample that are not stored yet, and record each one's row."""
        position, shards, last = self._position, self._shards, session.last
        assert position is not None
        number = position.number
        last_stored = last.output if last is not None and number == last.number else -1
        for output, sample in enumerate(outputs):
            if type(sample) is not dict and hasattr(type(sample), "_writer_input"):
                raise TypeError(
                    f"map= returned several results for sample {number}, and one of them is a "
                    f"{type(sample).__name__}: resume=True needs single samples, so return them "
                    "one by one"
                )
            position.output = output
            if output > last_stored:
                session.add_output(shards.samples, number, output)
                yield sample
            elif output == last_stored:
                session.check_sample(sample)

    def _start_workers(
        self, count: int, function: MapFunction | None, tracks: bool = False
    ) -> WorkerPool:
        """Start worker processes, which return each row's sample number if `tracks` is True."""
        from npstream.writing.workers import Task, WorkerPool

        encoding = None if self._encoder is None else (self._encoder.layout, False)
        task = Task(function, self._fill, self._rejects is not None, encoding, tracks)
        return WorkerPool(count, task)

    def _write_results(self, pool: WorkerPool, samples: Iterable[Any], first: int) -> None:
        """Write the results of worker processes for samples."""
        session = self._session
        if self._encoder is not None and not pool.has_layout:
            pool.set_layout(self._encoder.layout, self._is_inferred)
        for result in pool.run(samples, first):
            for number, output, sample in result.loaded_samples():
                self._position = Position(number, output)
                if session is not None:
                    session.add_output(self._shards.samples, number, output)
                self._write(sample)
            if self._encoder is not None and not pool.has_layout:
                pool.set_layout(self._encoder.layout, self._is_inferred)
            if session is not None:
                session.drop_stored(result)
            for rejected in result.rejected:
                self._reject(rejected)
            data, nbytes = result.encoded()
            if len(nbytes):
                if session is not None:
                    session.add_batch(self._shards.samples, result.numbers, result.outputs)
                self._append(data, nbytes)

    def _skip_input(
        self,
        table: InputTable | TableStream | None,
        samples: Iterable[Any],
        is_mapped: bool,
        by_rows: bool,
    ) -> tuple[InputTable | TableStream | None, Iterable[Any]]:
        """Return the data after the last sample that is stored, as `skip_input` does."""
        session, encoder = self._session, self._encoder
        assert session is not None
        assert encoder is not None

        def encode(sample: Any, number: int) -> bytes:
            sample = as_mapping(sample, self._user_columns(), number)
            check_mapping(sample, number)
            return encoder.encode(sample, number)

        session.set_encoder(encoder.layout, encode)
        return skip_input(session, table, samples, is_mapped, by_rows)

    def _publish(self) -> None:
        """Store the remaining samples, and then the index."""
        if self._format is None:
            raise ValueError("no samples and no columns=: the columns of the dataset are unknown")
        if self._session is not None:
            if self._session.is_published:
                self._session.destination.finish()
                return
            rejected_count = 0 if self._rejects is None else self._rejects.count
            self._session.finish_input(self._next_number(), rejected_count)
        self._shards.flush()
        self._shards.finish()
        entries, sidecar_builder = self._shards.entries, self._shards.sidecar_builder
        self._shards.begin()  # for a dataset without shards
        if isinstance(self._destination, Revision):
            if self._session is not None:
                self._session.finish_shards(entries)
            publish_shards(self._destination, self._format, entries, sidecar_builder)
            return
        text = json.dumps(new_document(self._format, entries), sort_keys=True).encode()
        if sidecar_builder is None:
            self._destination.publish(text, ())
        else:
            self._destination.publish(text, sidecar_files(sidecar_builder, text))

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(
                "this Writer is closed: it published its dataset, or it failed; open another "
                "npstream.Writer for another directory"
            )

    def _write_foreign(self, data: Any, number: int) -> bool:
        """Write `data` if it is a table of another library; return False if it is not a table.

        If a row cannot be encoded, no row is written, unless such rows are left out (`on_error`).
        """
        with sample_numbers(number):
            table = foreign_table(data, self._user_columns(), self._fill)
        if table is not None:
            self._write_any_table(table, at_once=True)
        return table is not None

    def _write_any_table(self, table: InputTable | TableStream, at_once: bool = False) -> None:
        """Write a table or a stream of tables: by columns, or by rows if rows may be left out."""
        if self._rejects is not None:
            self._write_rows(table)
        elif isinstance(table, TableStream):
            self._write_stream(table, at_once)
        else:
            self._write_table(table, at_once)

    def _write_rows(self, table: InputTable | TableStream) -> None:
        """Write the rows of a table one by one."""
        reject = None if self._rejects is None else self._reject_row
        for sample in table_rows(table, reject):
            self._write(sample)

    def _reject_row(self, error: RowError) -> None:
        """Record a row that a table cannot return."""
        number = self._next_number()
        reason = str(error.sample_error(number - error.row))
        self._reject(RejectedSample(number, reason, "a row of a table"))

    def _write_stream(self, stream: TableStream, at_once: bool = False) -> None:
        """Write tables one after another."""
        if self._format is None:
            encodings = table_encodings(stream.head, self._selection)
            self._set_format(self._settings.new_format(encodings))
        while True:
            with sample_numbers(self._shards.samples):
                table = next(stream.tables, None)
            if table is None:
                return
            self._write_table(table, at_once, as_records=False)
            del table  # before the next one is read

    def _write_table(
        self, table: InputTable, at_once: bool = False, as_records: bool = True
    ) -> None:
        """Write the rows of a table.

        If `at_once` is True, all rows are encoded before any is added, so that an error adds
        none. Otherwise rows are written block by block. In that case, if `as_records` is True, a
        table whose columns are all fixed arrays starts a new shard. Its shards are written from
        the arrays.
        """
        with sample_numbers(self._shards.samples):
            self._write_columns(table, at_once, as_records)

    def _write_columns(self, table: InputTable, at_once: bool, as_records: bool) -> None:
        names, number = table.names(), self._shards.samples
        layout = self._format
        if layout is None:
            layout = self._settings.new_format(table_encodings(table, self._selection))
        columns = layout.columns
        if self._is_inferred:
            refuse_unknown_columns(columns, names, number)
        for name in columns:
            if name not in names:
                where = f"sample {number}: " if number else ""
                raise ColumnError(name, getattr(table, "available_names", names), where)
        if not at_once:
            self._set_format(layout)
            if layout.has_fixed_size and table.has_array_blocks and as_records:
                self._write_records(table)
                return
        if not table.length:
            return
        bounds = [(0, table.length)] if at_once else self._bounds(table, 0, table.length)
        if not at_once and (stored := table.stored_samples(bounds, layout)) is not None:
            self._write_stored(stored)
            return
        for block in table.blocks(bounds, columns):
            number = self._shards.samples
            samples = layout.pack(block, number)
            self._set_format(layout)
            self._append(*samples)

    def _write_stored(self, stored: StoredSamples) -> None:
        """Write samples that are in the format of the shards already."""
        for block in stored.blocks:
            nbytes = block.nbytes
            can_wait = self._shards.keeps_bodies and stored.are_memory_mapped
            can_wait &= int(nbytes.sum()) >= MIN_UNCOPIED_BYTES * len(nbytes)
            self._append(block if can_wait else block.copy(), nbytes)

    def _bounds(self, table: InputTable, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the first row of each block of about `BLOCK_BYTES`, and the row after its last."""
        while start < stop:
            nbytes = table.row_bytes or self._row_bytes
            rows = min(BLOCK_BYTES // nbytes, BLOCK_ROWS) if nbytes else FIRST_ROWS
            end = -(-(start + max(rows, 1)) // table.chunk) * table.chunk
            yield start, min(end, stop)
            start = end

    def _write_records(self, table: InputTable) -> None:
        """Write arrays of fixed columns, without Python code for each sample."""
        with self._discard_on_error():
            self._shards.flush()
        layout, samples = self._shards.layout, table.length
        # The scan reads an only column whose array stays unchanged later, without a copy.
        is_stable = len(layout.columns) == 1 and getattr(table, "has_stable_blocks", False)
        sample_bytes = layout.sample_bytes + sum(e.size or 0 for e in layout.columns.values())
        per_shard = samples
        if layout.size_limit:
            per_shard = min(
                samples, max(1, (layout.size_limit - layout.empty_bytes) // sample_bytes)
            )
        if self._shards.shard_samples is not None:
            per_shard = min(per_shard, self._shards.shard_samples)
        layout.check_end(
            layout.empty_bytes + per_shard * sample_bytes, self._shards.samples + per_shard - 1
        )
        for start in range(0, samples, max(per_shard, 1)):
            stop = min(start + per_shard, samples)
            bounds = self._bounds(table, start, stop)
            if is_stable:
                bounds = self._shards.chunk_bounds(start, stop)
            blocks = self._arrays(table, bounds, self._shards.samples)
            with self._discard_on_error():
                nbytes = layout.empty_bytes + (stop - start) * sample_bytes
                is_last = stop == samples
                last_row = b""
                if self._session is not None:
                    last_row = packed_row(table, layout, stop - 1)
                self._shards.store_records(
                    blocks, stop - start, nbytes,
                    is_last=is_last, is_stable=is_stable, last_row=last_row,
                )  # fmt: skip

    def _arrays(
        self, table: InputTable, bounds: Iterator[tuple[int, int]], number: int
    ) -> Iterator[dict[str, AnyArray]]:
        """Yield rows of fixed columns as arrays; `number` is that of the first sample."""
        assert self._format is not None
        for block in table.blocks(bounds, self._format.columns):
            yield {name: self._array(name, part, number) for name, part in block.items()}
            number += len(next(iter(block.values())))

    def _array(self, name: str, part: ColumnBlock, number: int) -> AnyArray:
        """Return rows of a fixed column as an array; Python values are encoded one by one."""
        assert self._format is not None
        if isinstance(part, np.ndarray):
            return part
        assert not isinstance(part, Bodies)
        encoding = self._format.columns[name]
        body = b"".join(self._format.bodies(name, part, number))
        values = np.frombuffer(body, encoding.dtype.newbyteorder("<"))
        return values.reshape(-1, *(encoding.shape or ()))

    def _append(self, data: Bytes | Bodies, nbytes: Int64) -> None:
        """Add encoded samples; `nbytes` has the size of each."""
        self._row_bytes = -(-int(nbytes.sum()) // max(len(nbytes), 1))
        self._shards.check_rows(nbytes)
        with self._discard_on_error():
            self._shards.add_rows(data, nbytes)

    @contextmanager
    def _discard_on_error(self) -> Iterator[None]:
        """Discard the dataset if the block raises, because a shard may be lost."""
        try:
            yield
        except BaseException as error:
            self._discard(error)
            raise

    def _discard(self, error: BaseException) -> None:
        if not self._open:
            return
        self._open = False
        self._encode_dict = encode_none
        self._shards.close()
        if message := self._destination.remove():
            error.add_note(message)
        self._finalizer.detach()

    def _make_report(self) -> WriteReport:
        entries = self._shards.entries
        raw_bytes, stored_bytes = count_bytes(entries)
        assert self._format is not None
        columns = self._format.columns
        order = self._format.annotations.order or columns
        return WriteReport(
            path=self._destination.path,
            columns={name: columns[name].name for name in order},
            samples=self._shards.samples,
            shards=len(entries),
            raw_bytes=raw_bytes,
            stored_bytes=stored_bytes,
            seconds=time.perf_counter() - self._start,
            rejected=0 if self._rejects is None else self._rejects.count,
        )


def _remove(destination: Destination) -> None:
    """Remove the files of a Writer that was not closed.

    Garbage collection may run in any thread. Only the main thread may wait for the requests.
    """
    if threading.current_thread() is threading.main_thread():
        destination.remove()
    else:
        threading.Thread(target=destination.remove, name="npstream-remove").start()
