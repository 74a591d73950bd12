"""Provide `convert`, which makes a dataset from files of other formats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, overload

from npstream._core.arguments import quantity, size_text
from npstream.conversion.choice import Choice, ColumnChoice, parse_times
from npstream.conversion.dask.writer import check_cluster_options, write_parts
from npstream.conversion.files import FileList, SourcePath, find_files
from npstream.conversion.source import (
    EmptySourceError,
    InputSource,
    SourceRequest,
    kind_class,
    recognize_kind,
)
from npstream.conversion.tokenization import Tokenization
from npstream.conversion.transform import Condition, is_arrow_table, parse_condition
from npstream.errors import ColumnError, StorageError, short_traceback
from npstream.explore.expression import Expression
from npstream.formats.encodings.encodings import column_type
from npstream.storage.urls import location_str, scheme_of
from npstream.writing.formats import check_settings
from npstream.writing.inputs.fill import Fill, check_fill, fill_sample
from npstream.writing.inputs.parts import Part, PartedInput
from npstream.writing.inputs.recognition import as_mapping, iterate, samples_of, table_of
from npstream.writing.mapping import apply_map, table_rows
from npstream.writing.settings import check_workers, hash_names
from npstream.writing.tables import TableStream, infer_column
from npstream.writing.writer import WriteReport, write

if TYPE_CHECKING:
    from npstream.tokens.encoder import Tokenizer
    from npstream.writing.mapping import MapFunction
    from npstream.writing.tables import Writable

__all__ = ["ConvertPlan", "convert", "open_input_files"]


@dataclass(frozen=True, slots=True)
class ConvertPlan:
    r"""What `convert` would write: the result of ``convert(..., dry_run=True)``.

    Attributes
    ----------
    source : str
        The path or URL of the source, without secrets.
    kind : str
        The kind of the source.
    files : int
        Number of files; 0 if the source is an object.
    nbytes : int
        Bytes of the files.
    columns : dict of str to str
        The encoding of each column.
    samples : int
        Number of samples of the source, without those that `where` leaves out.

    Examples
    --------
    >>> from pathlib import Path
    >>> import npstream
    >>> _ = Path("people.csv").write_text("name,age\nAda,36\nAlan,41\n")
    >>> plan = npstream.convert("people.csv", "people", dry_run=True)
    >>> plan.kind, plan.columns, plan.samples
    ('csv', {'name': 'str', 'age': 'int64'}, 2)
    """

    source: str
    kind: str
    files: int
    nbytes: int
    columns: dict[str, str]
    samples: int

    def __str__(self) -> str:
        width = max(map(len, self.columns), default=0)
        lines = [f"{self.source}: {self.kind}, {quantity(self.samples, 'sample')}"]
        if self.files:
            lines[0] += f" in {quantity(self.files, 'file')} of {size_text(self.nbytes)}"
        lines += [f"  {name:{width}}  {encoding}" for name, encoding in self.columns.items()]
        return "\n".join(lines)


@overload
def convert(
    source: SourcePath | Writable | Iterable[Any] | Mapping[str, Any],
    url: str | os.PathLike[str],
    *,
    kind: str | None = None,
    columns: ColumnChoice | None = None,
    rename: Mapping[str, str] | None = None,
    where: str | Condition | None = None,
    map: MapFunction | None = None,
    fill: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    column: str = "text",
    block: int | None = None,
    separator: int | str | None = None,
    token_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    reader_options: Mapping[str, Any] | None = None,
    dry_run: Literal[False] = False,
    mode: str = "x",
    workers: int = 0,
    client: Any = None,
    on_error: str = "raise",
    max_errors: int | None = None,
    rejects: str | os.PathLike[str] | None = None,
    format: str | None = None,
    newline: str | None = None,
    sidecar: bool = True,
    shard_size: int | str | None = "64MiB",
    shard_samples: int | None = None,
    compression: str | None = None,
    hashes: Iterable[str] = (),
    resume: bool = False,
    exclusive: bool = False,
    progress: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport: ...
@overload
def convert(
    source: SourcePath | Writable | Iterable[Any] | Mapping[str, Any],
    url: str | os.PathLike[str],
    *,
    kind: str | None = None,
    columns: ColumnChoice | None = None,
    rename: Mapping[str, str] | None = None,
    where: str | Condition | None = None,
    map: MapFunction | None = None,
    fill: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    column: str = "text",
    block: int | None = None,
    separator: int | str | None = None,
    token_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    reader_options: Mapping[str, Any] | None = None,
    dry_run: Literal[True],
    mode: str = "x",
    workers: int = 0,
    client: Any = None,
    on_error: str = "raise",
    max_errors: int | None = None,
    rejects: str | os.PathLike[str] | None = None,
    format: str | None = None,
    newline: str | None = None,
    sidecar: bool = True,
    shard_size: int | str | None = "64MiB",
    shard_samples: int | None = None,
    compression: str | None = None,
    hashes: Iterable[str] = (),
    resume: bool = False,
    exclusive: bool = False,
    progress: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> ConvertPlan: ...
def convert(
    source: SourcePath | Writable | Iterable[Any] | Mapping[str, Any],
    url: str | os.PathLike[str],
    *,
    kind: str | None = None,
    columns: ColumnChoice | None = None,
    rename: Mapping[str, str] | None = None,
    where: str | Condition | None = None,
    map: MapFunction | None = None,
    fill: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    column: str = "text",
    block: int | None = None,
    separator: int | str | None = None,
    token_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    reader_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    mode: str = "x",
    workers: int = 0,
    client: Any = None,
    on_error: str = "raise",
    max_errors: int | None = None,
    rejects: str | os.PathLike[str] | None = None,
    format: str | None = None,
    newline: str | None = None,
    sidecar: bool = True,
    shard_size: int | str | None = "64MiB",
    shard_samples: int | None = None,
    compression: str | None = None,
    hashes: Iterable[str] = (),
    resume: bool = False,
    exclusive: bool = False,
    progress: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport | ConvertPlan:
    r"""Make a dataset from files of another format.

    Files are read in the natural order of their names: ``part-9`` comes before ``part-10``. The
    samples of a file keep their order.

    Parameters
    ----------
    source : path, URL, sequence of them, or object
        A file, a directory, or a glob such as ``"data/*.parquet"``. An object can be anything
        that `write` takes. The kind of files is recognized by their names and, for some, by their
        content.
    url : str or os.PathLike
        The directory or URL of the dataset.
    kind : str, optional
        The kind of files, such as ``"parquet"``, ``"csv"``, ``"jsonl"`` or ``"mds"``; by default
        it is recognized.
    columns : iterable of str, or mapping of str to str or None, optional
        The columns to write, in this order. A mapping also gives their encodings, as for `write`.
        A column with the value None keeps the encoding that follows from the source. By default
        all columns are written.
        With `map`, it must be a mapping and describes what `map` returns.
    rename : mapping of str to str, optional
        New names of columns, by their names in the source. All other arguments use the new names.
    where : str or callable, optional
        Which samples to write: an expression such as ``"lang == 'en' and len(text) > 100"``, or a
        function from a sample to True or False. It is evaluated before `map`.
    map : callable, optional
        A function from a sample to a sample, to None, or to an iterable of samples. It
        receives nulls as None.
    fill : mapping of str to object, optional
        The values of missing columns and of missing values, such as nulls and None.
    tokenizer : tokenizers.Tokenizer or callable, optional
        Replaces a column of text by a column ``"tokens"`` of token ids, after `map`, in the
        worker processes. See `npstream.tokens.TokenMap`.
    column : str, default: "text"
        The column of the text.
    block : int, optional
        The number of ids of a block. The ids of all texts are joined and cut into blocks of this
        length, which are then the only column. By default each text is a row. See
        `npstream.tokens.token_blocks`.
    separator : int or str, optional
        With `block`, the id or the token after each text. Without `tokenizer`, the separator of
        the format ``"xsv"``, as for `write`.
    token_options : mapping, optional
        Other arguments of `TokenMap` or `token_blocks`: ``name``, ``dtype``, ``batched``,
        ``remainder`` and ``pad``.
    source_options : mapping, optional
        Options of the storage driver, if `source` is a URL.
    reader_options : mapping, optional
        Options of the kind, such as ``{"delimiter": ";"}`` for CSV.
    dry_run : bool, default: False
        Whether to return what would be written, without writing. Files that do not store the
        number of their samples are read to count them.
    mode : {"x", "w", "a"}, default: "x"
        Write a new dataset, replace one, or append to one, as for `write`.
    workers : int, default: 0
        Number of processes that run `map` or the tokenizer, and encode samples; 0 for this
        process. The order of the samples is kept. Without `map` and `tokenizer`, a remote source
        is converted without worker processes.
    client : distributed.Client, optional
        A client of a Dask cluster, whose workers then convert the files, each file in one task.
        The workers must reach the source and `url`. The samples and their order stay the same. A
        client needs ``mode="x"``, and excludes `workers`, `resume`, `rejects`, `max_errors` and
        `block`.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a sample that cannot be encoded raises, or is left out.
    max_errors : int, optional
        Number of samples that may be left out; one more raises ValueError. By default any number.
    rejects : str or os.PathLike, optional
        A local file of JSON lines that records the samples that are left out, as for `write`.
    format : str, optional
        ``"mds"``, or a text format: ``"jsonl"``, ``"csv"``, ``"tsv"`` or ``"xsv"``. By default
        ``"mds"``, and for an append the format of the dataset.
    newline : str, optional
        The text after each line of a text format; a line feed by default.
    sidecar : bool, default: True
        Whether to also write the side-car.
    shard_size : int, str or None, default: "64MiB"
        Maximum bytes of a shard before compression, less than 4 GiB; None (or 0) for a single
        shard.
    shard_samples : int, optional
        Maximum number of samples of a shard. A shard ends when either limit is reached.
    compression : str, optional
        The codec of the shards, such as ``"zstd:7"``. By default they are not compressed. An append
        uses the codec of the dataset by default.
    hashes : iterable of str, default: ()
        The hashes that the index records for each file, such as ``"xxh3_64"`` and ``"sha256"``.
    resume : bool, default: False
        Whether to keep the stored shards if the conversion fails or the process is killed. The next
        call then continues after them, as for `write`. Source files whose samples are all stored
        are not read again.
    exclusive : bool, default: False
        Whether the caller guarantees that no other process writes to `url`, as for `write`.
    progress : bool, optional
        Whether to show samples, bytes and their rate. By default they are shown in a terminal or
        notebook after a second.
    storage_options : mapping, optional
        Options of the storage driver, if the dataset is written to a URL.
    timeout : float, default: 60.0
        Seconds that a request to the store of the dataset may take, including all retries.
    retries : int, default: 4
        Number of retries of a request.

    Returns
    -------
    WriteReport or ConvertPlan
        A `ConvertPlan` if `dry_run` is True.

    Raises
    ------
    ValueError
        If the kind is unknown, files differ in their columns, the content of a file is damaged, or
        a value does not fit its column. The message names the file, the column and the value.
    TypeError
        If no encoding follows from the type of a column, or `reader_options` or `token_options`
        has an unknown option.
    ColumnError
        If the source lacks a column.
    FileExistsError
        With ``mode="x"``, if `url` holds a dataset or a part of one, as for `write`.
    StorageError
        If `source` does not exist, or the system or server fails to read or write a file.
    RuntimeError
        If a worker process was killed.
    MissingDependencyError
        If the kind needs a package that is not installed.

    See Also
    --------
    write : Writes samples, arrays and tables.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("people.csv").write_text("name,age\nAda,36\nAlan,41\n")
    >>> npstream.convert("people.csv", "people", where="age > 40", columns=["name"]).samples
    1
    >>> npstream.open("people")["name"][0]
    'Alan'
    """
    with short_traceback:
        tokens = Tokenization.parse(tokenizer, column, block, separator, token_options)
        options: dict[str, Any] = {
            "mode": mode, "workers": check_workers(workers), "on_error": on_error,
            "max_errors": max_errors, "rejects": rejects, "format": format, "newline": newline,
            "separator": separator if tokens is None else None, "sidecar": sidecar,
            "shard_size": shard_size, "shard_samples": shard_samples, "compression": compression,
            "hashes": hash_names(hashes), "resume": resume, "exclusive": exclusive,
            "progress": progress, "storage_options": storage_options, "timeout": timeout,
            "retries": retries,
        }  # fmt: skip
        check_settings(options)
        to_read = columns if tokens is None else tokens.source_columns(columns, map is not None)
        choice = Choice(to_read, rename, parse_condition(where), map, fill)
        choice.check(format, mode)
        choice.may_be_empty = mode == "a" and not dry_run
        if client is not None:
            check_cluster_options({**options, "block": block})
        open_source = partial(_open_source, source, kind, choice, source_options, reader_options)
        if tokens is not None:
            is_lazy = bool(workers) and _is_remote(source)
            return _convert_tokens(
                url, open_source, choice, tokens, columns, is_lazy, dry_run, options, client
            )
        if dry_run:
            return _plan(open_source(), choice)
        data: _Parts
        encodings: Any  # `write` also takes Encoding objects, which its signature does not show
        if workers and _is_remote(source) and map is not None:
            # A forked process cannot use the threads and clients that reading a store makes.
            data, encodings = _LazyParts(open_source, choice), choice.encodings(None)
        else:
            opened = open_source()
            data = _Parts(opened, choice)
            encodings = choice.encodings(opened.columns, opened.is_encoded)
            if _is_remote(source):
                options["workers"] = 0  # the source is already open in this process, see above
        if map is None and fill is not None:
            fill = parse_times(choice.fill, encodings)
        if encodings is None and choice.columns is not None:
            encodings = list(choice.columns)  # `write` infers their encodings from the first sample
        try:
            arguments = {"columns": encodings, "map": map, "fill": fill, **options}
            return _write(url, data, arguments, client)
        except Exception as error:
            data.add_part_name(error)
            raise


def _convert_tokens(
    url: str | os.PathLike[str],
    open_source: Callable[[], InputSource],
    choice: Choice,
    tokens: Tokenization,
    columns: ColumnChoice | None,
    is_lazy: bool,
    dry_run: bool,
    options: dict[str, Any],
    client: Any,
) -> WriteReport | ConvertPlan:
    """Write the token ids of a source, or return what would be written.

    If `is_lazy` is True, the source is opened after the worker processes have started.
    """
    choice.as_samples = True
    if choice.map is None:
        choice.row_fill = check_fill(choice.fill)
    if dry_run:
        plan = _plan(open_source(), choice)
        return replace(plan, columns=tokens.planned_columns(plan.columns, columns, choice.map))
    choice.maps_parts = choice.map is not None and tokens.block is not None
    encodings: Any
    source = None if is_lazy else open_source()
    data = _LazyParts(open_source, choice) if source is None else _Parts(source, choice)
    try:
        if tokens.block is not None:
            with closing(tokens.blocks(data, options.pop("workers", 0))) as blocks:
                return write(url, blocks, **options)
        function = tokens.map_function(columns, choice.map)
        if choice.map is not None:
            encodings = choice.encodings(None)
        elif source is None:
            encodings = tokens.user_encodings(columns, function.encoding)
        else:
            source_encodings = choice.encodings(source.columns, source.is_encoded)
            encodings = tokens.encodings(source_encodings, columns, function.encoding)
        fill = {name: value for name, value in choice.fill.items() if name != tokens.column}
        arguments = {"columns": encodings, "map": function, "fill": fill or None, **options}
        return _write(url, data, arguments, client)
    except Exception as error:
        data.add_part_name(error)
        raise


def _write(
    url: str | os.PathLike[str], data: _Parts, arguments: dict[str, Any], client: Any
) -> WriteReport:
    """Write the parts of a source in this process, or in the workers of a cluster."""
    return (
        write(url, data, **arguments)
        if client is None
        else write_parts(url, data, client, arguments)
    )


def open_input_files(
    source: SourcePath,
    *,
    kind: str | None = None,
    columns: ColumnChoice | None = None,
    rename: Mapping[str, str] | None = None,
    source_options: Mapping[str, Any] | None = None,
    reader_options: Mapping[str, Any] | None = None,
) -> tuple[PartedInput, dict[str, Any] | None]:
    """Return the samples of files for `npstream.write`, and the encodings of their columns.

    The encodings are None if the first sample decides. The parameters are those of `convert`.
    """
    choice = Choice(columns, rename, None, None, None)
    opened = _open_source(source, kind, choice, source_options, reader_options)
    return _Parts(opened, choice), choice.encodings(opened.columns, opened.is_encoded)


def _open_source(
    source: Any,
    kind: str | None,
    choice: Choice,
    source_options: Mapping[str, Any] | None,
    reader_options: Mapping[str, Any] | None,
) -> InputSource:
    request = choice.request(reader_options)
    if not _is_path(source):
        return ObjectSource(source, request)
    source_class = None if kind is None else kind_class(kind)
    try:
        files = find_files(source, source_options)
    except StorageError as error:
        if not isinstance(source, str | os.PathLike) and " " in str(source[0]).strip():
            error.add_note(
                "source is a list of paths; texts are samples that are mappings, as in "
                "[{'text': 'to be'}]"
            )
        raise
    try:
        opened = (source_class or recognize_kind(files))(files, request)
    except EmptySourceError:
        if not choice.may_be_empty:
            raise
        return ObjectSource((), request)  # an append uses the columns of the existing dataset
    if opened.columns is not None:
        for old in choice.rename:
            if old not in opened.columns and request.columns is None:
                raise ColumnError(old, list(opened.columns), "rename=: ")
        if isinstance(choice.where, Expression):
            choice.where.check({choice.rename.get(name, name) for name in opened.columns})
    return opened


def _is_remote(source: Any) -> bool:
    """Return True if a path, or one of several, is a URL of another machine."""
    if not _is_path(source):
        return False
    paths = source if isinstance(source, list | tuple) else [source]
    return any(scheme_of(location_str(path, "source")) not in ("", "file") for path in paths)


def _is_path(source: Any) -> bool:
    if isinstance(source, str | os.PathLike):
        return True
    return isinstance(source, list | tuple) and all(
        isinstance(each, str | os.PathLike) for each in source
    )


class ObjectSource(InputSource):
    """An object that `write` takes, as a source of one part."""

    kind = "object"

    def __init__(self, data: Any, request: SourceRequest) -> None:
        self.data = data
        super().__init__(FileList(f"a {type(data).__name__}", ()), request)
        # The length of a mapping is the number of columns, so count the rows of one column.
        rows = next(iter(data.values()), ()) if isinstance(data, Mapping) else data
        self.samples = len(rows) if hasattr(type(rows), "__len__") else None

    def parts(self) -> Sequence[Part]:
        """Return the object as a part."""
        return [Part("data", lambda: self.data)]


class _Parts(PartedInput):
    """The parts of a source, whose samples and tables are transformed when a part is opened.

    Parameters
    ----------
    source : InputSource
    choice : Choice

    Attributes
    ----------
    last : str or None
        The name of the part that was opened last.
    """

    last: str | None = None

    def __init__(self, source: InputSource, choice: Choice) -> None:
        self._source, self._transform, self._choice = source, choice.transform(), choice
        self._transform.may_reuse = isinstance(source, ObjectSource)  # iterators reuse values
        # Without `map` and `tokenizer`, `write` selects the columns and names those that exist.
        self._transform.keeps_incomplete = not choice.as_samples
        keeps_count = choice.where is None and not choice.maps_parts
        parts = [
            Part(part.name, partial(self._open, part), part.samples if keeps_count else None)
            for part in source.parts()
        ]
        options = json.dumps(dict(source.request.options), sort_keys=True, default=str)
        description = {**choice.description(), "kind=": source.kind, "reader_options=": options}
        super().__init__(parts, description)

    def _open(self, part: Part) -> Any:
        self.last = part.name
        data = self._transform.apply(part.open())
        # `map` takes samples. If a part yielded tables, `write` would call `map` with each table.
        if not self._choice.as_samples:
            return data
        samples = _samples(data, self._choice.row_fill)
        if not self._choice.maps_parts or self._choice.map is None:
            return samples
        return chain.from_iterable(
            apply_map(self._choice.map, sample, number) for number, sample in enumerate(samples)
        )

    def add_part_name(self, error: Exception) -> None:
        """Add the name of the part to an exception that does not have it yet."""
        texts = [str(error), *getattr(error, "__notes__", ())]
        if isinstance(error, StorageError):
            return  # it names the file, which may belong to the dataset and not to the source
        if self.last is not None and not any(self.last in text for text in texts):
            place = ""
            if not self._choice.maps_parts:
                place = self._transform.place(str(error), self.last, self.position, self._source)
            error.add_note(f"in part {self.last!r} of the source{place}")


class _LazyParts(_Parts):
    """The parts of a source that is opened when they are needed.

    `write` reads the attributes of `PartedInput` after it has started the worker processes. The
    first read of an attribute opens the source.

    Parameters
    ----------
    open_source : callable
        Returns the source.
    choice : Choice
    """

    def __init__(self, open_source: Callable[[], InputSource], choice: Choice) -> None:
        self._open_source, self._lazy_choice = open_source, choice

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "parts" in vars(self):
            raise AttributeError(name)
        _Parts.__init__(self, self._open_source(), self._lazy_choice)
        return getattr(self, name)


def _plan(source: InputSource, choice: Choice) -> ConvertPlan:
    """Return the plan of a conversion.

    Samples are read only if the metadata of the source do not have the encodings or the counts.
    """
    if isinstance(source, ObjectSource) and isinstance(source.data, Iterator):
        raise ValueError("dry_run=True would use up the iterator: give a list of its samples")
    transform, column_types = choice.transform(), choice.encodings(source.columns)
    parts = _Parts(source, choice).parts
    counts = [part.samples for part in parts]
    for name, value in parse_times(choice.fill, column_types).items():
        target = (column_types or {}).get(name)
        if target is not None and choice.map is None:
            Fill(value).check(name, column_type(target) if isinstance(target, str) else target)
    if column_types is None:
        encodings = _infer_encodings(parts, choice)
    else:
        encodings = {
            name: each if isinstance(each, str) else each.name
            for name, each in column_types.items()
        }
    samples = source.samples
    if None not in counts:
        samples = sum(count or 0 for count in counts)
    elif samples is None or transform.where is not None:
        samples = sum(
            _count(part.open()) if part.samples is None else part.samples for part in parts
        )
    files = source.data_files() if source.files.files else ()
    nbytes = sum(file.nbytes for file in files)
    return ConvertPlan(source.files.where, source.kind, len(files), nbytes, encodings, samples)


def _infer_encodings(parts: Iterable[Part], choice: Choice) -> dict[str, str]:
    """Return the encodings that `write` would infer from the first sample."""
    requested = choice.columns or {}
    samples: Iterator[Any] = (sample for part in parts for sample in _samples(part.open()))
    fills = check_fill(choice.fill)
    if choice.map is not None:
        samples = (
            mapped
            for number, sample in enumerate(samples)
            for mapped in apply_map(choice.map, sample, number)
        )
    for number, sample in enumerate(samples):
        first = fill_sample(as_mapping(sample, None, number), fills, {})
        names = requested or dict.fromkeys(first)
        for name in names:
            if name not in first:
                raise ColumnError(name, list(first), f"sample {number}: ")
        return {
            name: encoding or infer_column(name, first[name]).name
            for name, encoding in names.items()
        }
    raise ValueError("no samples and no columns=: the columns of the dataset are unknown")


def _samples(data: Any, fill: Mapping[str, Fill] | None = None) -> Iterator[Any]:
    """Yield the samples of a part, whose content may be a table or an iterator of tables."""
    table = table_of(data, None, fill, check=False)
    if table is None:
        items = iterate(data)
        for first in items:
            samples = samples_of(chain([first], items), None, fill)
            if not isinstance(samples, TableStream):
                for sample in samples:
                    if fill and isinstance(sample, Mapping):
                        sample = fill_sample(sample, fill, {})
                    yield sample
                return
            table = samples
            break
    if table is not None:
        yield from table_rows(table)


def _count(data: Any) -> int:
    """Return the number of samples in the content of a part."""
    if isinstance(data, Mapping):
        return len(next(iter(data.values()), ()))
    if hasattr(type(data), "__len__"):
        return len(data)
    return sum(len(item) if is_arrow_table(item) else 1 for item in iterate(data))
