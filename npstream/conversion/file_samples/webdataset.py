"""WebDataset tars as a source: files with one name and several extensions are a sample."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from npstream.conversion.file_samples.tar import read_members
from npstream.conversion.file_samples.types import FileType, array_encoding, choose_type, file_type
from npstream.conversion.source import (
    EmptySourceError,
    InputSource,
    SourceRequest,
    read_in_thread,
)
from npstream.errors import FormatError, short_repr
from npstream.formats.encodings.encodings import infer
from npstream.writing.inputs.bad_value import BadValue
from npstream.writing.inputs.parts import Part

if TYPE_CHECKING:
    from npstream.conversion.files import FileList, SourceFile

__all__ = ["WebDatasetSource"]

KEY = "__key__"
"""The column of a sample's key: the path of its files without their extensions."""

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""A key and an extension. The key ends at the first dot after the last slash."""

_META = re.compile(r"__[^/]*__($|/)")
"""The names of files that are no part of a sample."""

_BATCH_BYTES = 1 << 20
_BATCH_SAMPLES = 256

Group = tuple[str, dict[str, bytes]]
"""The key of a sample, and the content of its files by extension."""


class WebDatasetSource(InputSource):
    """Tars of samples, in the natural order of their names, each read as a stream.

    The first sample decides the columns.
    """

    kind = "webdataset"
    extensions = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        self._files = self.data_files()
        where, (key, bodies) = self._first_sample()
        names = self.select_columns([KEY, *bodies], where)
        # A column of `fill` is written even if the first sample does not have it.
        names += [name for name in request.fill if name not in names and self._is_requested(name)]
        self._types = {name: self._type(name, bodies) for name in names if name != KEY}
        self.columns = {
            name: "str" if name == KEY else self._encoding(name, bodies, f"{where}: {key}")
            for name in names
        }
        self.is_encoded = True

    def parts(self) -> Sequence[Part]:
        """Return a part for each tar."""
        return [Part(file.name, partial(self._samples, file)) for file in self._files]

    def _is_requested(self, name: str) -> bool:
        return self.request.columns is None or name in self.request.columns

    def _first_sample(self) -> tuple[str, Group]:
        for file in self._files:
            with file.open() as opened:
                for group in read_groups(read_members(opened, file.where), file.where):
                    return file.where, group
        raise EmptySourceError(
            f"{self.files.where}: there is no sample: samples are files such as '000.jpg' and "
            "'000.cls'"
        )

    def _type(self, name: str, bodies: Mapping[str, bytes]) -> FileType:
        """Return the type of a column's files: the user's choice, or by the extension.

        If the first sample lacks the column and the extension is unknown, the value of ``fill=``
        decides.
        """
        if name in self.request.encodings:
            return choose_type(name, self.request.encodings[name])
        by_extension = file_type(name)
        if name in bodies or by_extension.encoding != "bytes":
            return by_extension
        return choose_type(name, infer(self.request.fill[name]).name)

    def _encoding(self, name: str, bodies: Mapping[str, bytes], where: str) -> str:
        encoding = self._types[name].encoding
        if encoding is not None:
            return encoding
        if name not in bodies:
            return infer(self.request.fill[name]).name
        try:
            return array_encoding(self._types[name].parse(bodies[name]))
        except (TypeError, ValueError) as error:
            raise FormatError(
                f"{where}.{name}: {error}; columns= can choose 'bytes' for the files as they are"
            ) from error

    def _samples(self, file: SourceFile) -> Iterator[dict[str, Any]]:
        """Yield the samples of a tar, which a thread reads ahead."""
        yield from chain.from_iterable(read_in_thread(self._batches(file)))

    def _batches(self, file: SourceFile) -> Iterator[list[dict[str, Any]]]:
        batch: list[dict[str, Any]] = []
        nbytes = 0
        with file.open() as opened:
            members = read_members(opened, file.where, self._is_wanted)
            for key, bodies in read_groups(members, file.where):
                batch.append(self._sample(key, bodies, file.where))
                nbytes += sum(map(len, bodies.values()))
                if nbytes >= _BATCH_BYTES or len(batch) >= _BATCH_SAMPLES:
                    yield batch
                    batch, nbytes = [], 0
        if batch:
            yield batch

    def _is_wanted(self, name: str) -> bool:
        """Return True for a member to read."""
        # Without columns=, all members are read. With `map`, the function gets all of them. Without
        # `map`, `_sample` returns bad values for a sample that has a member without a column.
        if self.request.columns is None:
            return True
        match = _NAME.fullmatch(name)
        return match is not None and match[2].lower() in self._types

    def _sample(self, key: str, bodies: Mapping[str, bytes], where: str) -> dict[str, Any]:
        sample: dict[str, Any] = {KEY: key} if KEY in (self.columns or ()) else {}
        if self.request.is_mapped:
            return sample | {
                name: self._value(file_type(name), body, f"{where}: member {f'{key}.{name}'!r}")
                for name, body in bodies.items()
            }
        for name, kind in self._types.items():
            if name in bodies:
                member = f"{where}: member {f'{key}.{name}'!r}"
                sample[name] = self._value(kind, bodies[name], member)
            elif name not in self.request.fill:
                sample[name] = BadValue(
                    f"{where}: sample {key!r} has no file {name!r}: give fill= a value for it, or "
                    "leave the column out with columns="
                )
        if self.request.columns is None and (
            extra := [extension for extension in bodies if extension not in self._types]
        ):
            bad = BadValue(
                f"{where}: sample {key!r} has a file {extra[0]!r}, and the first sample has none: "
                "name the columns to write with columns=, or give fill= a value for it"
            )
            return dict.fromkeys(sample, bad)
        return sample

    def _value(self, kind: FileType, body: bytes, where: str) -> Any:
        """Return the value in a file, or a `BadValue` if it cannot be parsed."""
        try:
            return kind.parse(body)
        except ValueError as error:
            return self.bad_value(f"{where}: {error}")


def read_groups(members: Iterable[tuple[str, bytes]], where: str) -> Iterator[Group]:
    """Yield the files of each sample: those with the same key that follow each other.

    Extensions are in lower case. Files without a key or extension are passed over, as `webdataset`
    does: ``README``, ``.DS_Store``, ``__index__/0.json``.

    Raises
    ------
    FormatError
        If a sample has two files with the same extension.
    """
    last, bodies = "", dict[str, bytes]()
    for name, body in members:
        match = _NAME.fullmatch(name)
        if match is None or _META.match(name):
            continue
        key, extension = match[1], match[2].lower()
        if key != last and bodies:
            yield last, bodies
            bodies = {}
        if extension in bodies:
            raise FormatError(
                f"{where}: member {short_repr(name)}: sample {key!r} already has a file "
                f"{extension!r}: extensions are compared in lower case"
            )
        bodies[extension] = body
        last = key
    if bodies:
        yield last, bodies
