"""The base of all sources, and the kinds of sources by name.

Each kind of files has a class of sources. A source has parts. It also has columns, if they are
known before all samples are read. A part, such as a file, can be opened several times, and is read
in order from its start. Opening a part returns data that `npstream.write` takes: Arrow record
batches, arrays, or an iterable of samples.

Tested in tests/conversion/test_source.py.
"""

from __future__ import annotations

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from npstream._core.arguments import quantity
from npstream.errors import ColumnError, FormatError
from npstream.writing.inputs.bad_value import BadValue

if TYPE_CHECKING:
    from npstream.conversion.files import FileList, SourceFile
    from npstream.writing.inputs.parts import Part

__all__ = [
    "SOURCE_KINDS",
    "EmptySourceError",
    "InputSource",
    "SourceRequest",
    "kind_class",
    "read_in_thread",
    "recognize_kind",
]

T = TypeVar("T")

SOURCE_KINDS: dict[str, str] = {
    "mds": "npstream.conversion.mds:MdsSource",
    "litdata": "npstream.conversion.litdata.source:LitDataSource",
    "webdataset": "npstream.conversion.file_samples.webdataset:WebDatasetSource",
    "parquet": "npstream.conversion.parquet:ParquetSource",
    "csv": "npstream.conversion.csv:CsvSource",
    "jsonl": "npstream.conversion.jsonl:JsonLinesSource",
    "huggingface": "npstream.conversion.hugging_face:HuggingFaceSource",
    "zarr": "npstream.conversion.arrays.zarr:ZarrSource",
    "hdf5": "npstream.conversion.arrays.hdf5:Hdf5Source",
    "npy": "npstream.conversion.arrays.numpy_files:NpySource",
    "npz": "npstream.conversion.arrays.numpy_files:NpzSource",
    "folder": "npstream.conversion.file_samples.folder:FolderSource",
}
"""The class of each kind of files. `recognize_kind` asks the classes in this order."""


@dataclass(frozen=True)
class SourceRequest:
    """The columns to read from a source, and the options of its kind.

    Attributes
    ----------
    columns : tuple of str or None
        The columns to read, by their names in the source; None for all.
    encodings : dict of str to str
        The encodings that the user chose, by the columns' names in the source.
    fill : dict of str to object
        The values of missing columns and values, by the columns' names in the source.
    options : dict of str to object
        The options of the kind, such as the delimiter of CSV.
    is_mapped : bool
        Whether the samples are passed to a function of the user. Then one sample of the source may
        have other columns than the next.
    """

    columns: tuple[str, ...] | None = None
    encodings: Mapping[str, str] = field(default_factory=dict)
    fill: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    is_mapped: bool = False


class InputSource(ABC):
    """The base of the sources.

    A class for a kind defines `kind`, `extensions` and `parts`. It may define `recognizes` and
    `OPTIONS`, and set `columns` and `samples`.

    Parameters
    ----------
    files : FileList
        The files of the source, in the order in which they are read.
    request : SourceRequest
        What `convert` needs of the source. Its ``options`` must be in `OPTIONS`.

    Attributes
    ----------
    files : FileList
    request : SourceRequest
    columns : dict of str to str, or None
        The encoding of each column to read, in order; None if they are unknown until samples are
        read.
    samples : int or None
        Number of samples, if that is known without reading them.
    is_encoded : bool
        Whether values of type `bytes` are encoded already, such as the content of image files.

    Raises
    ------
    TypeError
        If ``request.options`` has a name that is not in `OPTIONS`.
    """

    kind: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]] = ()
    """The extensions of files, in lower case, such as ``".parquet"``."""
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    """The names in `SourceRequest.options` that the kind knows."""

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        for name in request.options:
            if name not in self.OPTIONS:
                options = ", ".join(self.OPTIONS) or "none"
                raise TypeError(
                    f"reader_options: {self.kind!r} has no option {name!r}; its options: {options}"
                )
        self.files = files
        self.request = request
        self.columns: dict[str, str] | None = None
        self.samples: int | None = None
        self.is_encoded = False

    @classmethod
    def recognizes(cls, files: FileList) -> bool:
        """Return True if the files are of this kind, by other signs than `extensions`.

        `recognize_kind` calls this for all kinds first. If all return False, as they do by default,
        it compares the extensions of the files.
        """
        return False

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Return the parts in order. No part is read before it is opened.

        The name of a part is the same in every run, and so is the order of its samples.
        """

    def locate(self, part: str, row: int) -> str:
        """Return the place of a part's row in its file, such as "line 7", for error messages.

        By default it returns "", as nothing is known about places.
        """
        return ""

    def data_files(self) -> tuple[SourceFile, ...]:
        """Return the files to read: those with the kind's extensions, or all if none has one.

        Raises
        ------
        ValueError
            If there are none.
        """
        files = self.files.with_extensions(self.extensions) or self.files.files
        if not files:
            raise ValueError(f"{self.files.where}: there are no files")
        return files

    def select_columns(self, names: Iterable[str], where: str) -> list[str]:
        """Return the columns to read, in the requested order.

        If the source lacks a requested column, and ``fill=`` has a value for it, the result does
        not have this column.

        Parameters
        ----------
        names : iterable of str
            The columns that the source has.
        where : str
            The source, for messages.

        Raises
        ------
        ColumnError
            If the source lacks a requested column, and ``fill=`` has no value for it.
        """
        available = list(names)
        if self.request.columns is None:
            return available
        for name in self.request.columns:
            if name not in available and name not in self.request.fill:
                raise ColumnError(name, available, f"{where}: ")
        return [name for name in self.request.columns if name in available]

    def bad_value(self, reason: str) -> BadValue:
        """Return the placeholder of a value that cannot be read; the writer refuses its sample.

        Raises
        ------
        FormatError
            If the samples are passed to a function of the user. The message is `reason`.
        """
        if self.request.is_mapped:
            raise FormatError(reason)
        return BadValue(reason)


class EmptySourceError(ValueError):
    """A source has no samples, so its columns are unknown. An append accepts such a source."""


def kind_class(name: str) -> type[InputSource]:
    """Return the class of a kind.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if name not in SOURCE_KINDS:
        raise ValueError(f"kind={name!r}: expected one of {', '.join(map(repr, SOURCE_KINDS))}")
    module, _, attribute = SOURCE_KINDS[name].partition(":")
    source_class: type[InputSource] = getattr(importlib.import_module(module), attribute)
    return source_class


def recognize_kind(files: FileList) -> type[InputSource]:
    """Return the class of the files' kind.

    Raises
    ------
    ValueError
        If no kind fits, or the files are of several kinds.
    """
    kinds = [kind_class(name) for name in SOURCE_KINDS]
    for kind in kinds:
        if kind.recognizes(files):
            return kind
    counts = {
        kind: len(files.with_extensions(kind.extensions)) for kind in kinds if kind.extensions
    }
    candidates = [kind for kind, count in counts.items() if count]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        shown = ", ".join(
            f"{quantity(counts[kind], 'file')} of {kind.kind!r}" for kind in candidates
        )
        raise ValueError(
            f"{files.where}: files of several kinds: {shown}: choose one with kind=, or give a "
            f"glob, such as '*{candidates[0].extensions[0]}'"
        )
    if not files.files:
        raise EmptySourceError(f"{files.where}: the directory has no files, besides hidden ones")
    names = ", ".join(repr(file.name) for file in files.files[:3])
    raise ValueError(
        f"{files.where}: no kind of data is known for files such as {names}: give kind=, one of "
        f"{', '.join(map(repr, SOURCE_KINDS))}; or read the data yourself, as with "
        "pandas.read_excel, and pass them instead of the path"
    )


def read_in_thread(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield items that a thread reads ahead.

    Parameters
    ----------
    items : iterable
        It is read in the thread, and closed there if it is a generator.
    depth : int, default: 2
        Maximum number of items that are read before they are used.
    """
    results: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
    free = threading.Semaphore(depth)
    stopped = threading.Event()

    def run() -> None:
        iterator = iter(items)
        try:
            while free.acquire() and not stopped.is_set():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                results.put((True, item))
                del item  # the memory of an item is free as soon as the consumer drops it
        except BaseException as error:
            results.put((False, error))
        else:
            results.put((False, None))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=run, name="npstream-source", daemon=True)
    thread.start()
    try:
        while True:
            is_item, result = results.get()
            if is_item:
                yield result
                del result
                free.release()
            elif result is None:
                return
            else:
                raise result
    finally:
        stopped.set()
        free.release()
        thread.join()
