"""Folders of images or other files as a source, with labels from the names of folders."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

from npstream._core.arguments import quantity
from npstream.conversion.file_samples.metadata import METADATA_NAMES, Metadata, read_metadata
from npstream.conversion.file_samples.types import FileType, choose_type, file_type
from npstream.conversion.files import FileList, SourceFile, read_whole_files
from npstream.conversion.source import InputSource, SourceRequest
from npstream.formats.encodings.encodings import infer
from npstream.writing.inputs.parts import Part

__all__ = ["FolderSource"]

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
)
MEDIA_EXTENSIONS = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"),
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"),
    ".pdf",
)

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))
"""The usual names of folders that are splits and not classes."""

_PART_FILES = 1000
"""Files of a part. A write that resumes reads at most this many files a second time."""

_LOCAL_BATCH = (64, 1 << 21)
_REMOTE_BATCH = (256, 1 << 25)
"""Maximum files and bytes of a batch, which a thread reads.

A thread requests the remote files of its batch concurrently, so a remote batch is larger.
"""

_MAX_PENDING_BYTES = 1 << 26
"""Maximum bytes that are read ahead, unless a single file is larger."""

_LOCAL_THREADS = 4
_REMOTE_THREADS = 2


class FolderSource(InputSource):
    """The files of a folder, in the natural order of their paths. Each is a sample.

    The option ``labels`` says whether the folders directly in the source are classes. By default
    they are, unless there is a ``metadata.csv`` or ``metadata.jsonl``. If the source has classes, a
    file outside of them raises ValueError. Without the option, the source also raises ValueError if
    all folders have names of splits.
    """

    kind = "folder"
    extensions = (*IMAGE_EXTENSIONS, *MEDIA_EXTENSIONS)
    OPTIONS: ClassVar[tuple[str, ...]] = ("labels",)

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        self._metadata: Metadata | None = read_metadata(files)
        data_files = [file for file in files.files if not _is_metadata(file.name)]
        if not data_files:
            raise ValueError(f"{files.where}: there are no files")
        paths = _relative_paths(data_files)
        self._column = self._file_column(data_files)
        self._labels = self._class_labels(paths)
        self._files = list(zip(data_files, paths, strict=True))
        available = {self._column: self._file_encoding(data_files[0])}
        if self._labels is not None:
            available |= {"label": "int", "class": "str"}
        available["path"] = "str"
        if self._metadata is not None:
            self._metadata.check(paths, available)
            available |= self._metadata.columns
        names = self.select_columns(available, files.where)
        for name in request.fill:
            if name not in available and (request.columns is None or name in request.columns):
                available[name] = infer(request.fill[name]).name
                names.append(name)
        self.columns = {name: request.encodings.get(name, available[name]) for name in names}
        self.samples = len(data_files)
        self.is_encoded = True
        self._types: dict[str, FileType] = {}

    @classmethod
    def recognizes(cls, files: FileList) -> bool:
        """Return True if there are images, and no other files than their metadata."""
        names = [file.name for file in files.files if not _is_metadata(file.name)]
        return bool(names) and all(_is_image(name) for name in names)

    def parts(self) -> Sequence[Part]:
        """Return a part for each 1,000 files."""
        starts = [*range(0, len(self._files), _PART_FILES), len(self._files)]
        return [
            Part(self._part_name(start, stop), partial(self._samples, start, stop), stop - start)
            for start, stop in pairwise(starts)
        ]

    def _part_name(self, start: int, stop: int) -> str:
        first, last = self._files[start][1], self._files[stop - 1][1]
        return first if start + 1 == stop else f"{first} to {last}"

    def _samples(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        assert self.columns is not None
        files = self._files[start:stop]
        has_file = self._column in self.columns
        bodies: Iterable[bytes] = (
            read_files([file for file, _ in files]) if has_file else [b""] * len(files)
        )
        path_columns = ("path",) if self._labels is None else ("label", "class", "path")
        names = [name for name in path_columns if name in self.columns]
        for (file, path), body in zip(files, bodies, strict=True):
            sample: dict[str, Any] = {self._column: self._value(file, body)} if has_file else {}
            for name in names:
                sample[name] = self._path_value(name, path)
            if self._metadata is not None:
                self._add_metadata(sample, path)
            yield sample

    def _value(self, file: SourceFile, body: bytes) -> Any:
        parts = file.name.rpartition("/")[2].lower().split(".")
        extension = ".".join(parts[-2:] if parts[-1] == "gz" else parts[-1:])
        kind = self._types.get(extension)
        if kind is None:
            kind = self._types[extension] = self._file_type(extension)
        try:
            return kind.parse(body)
        except ValueError as error:
            return self.bad_value(f"{file.where}: {error}")

    def _file_type(self, extension: str) -> FileType:
        encoding = self.request.encodings.get(self._column)
        if encoding is not None:
            return choose_type(extension, encoding)
        return file_type(extension) if self._column == "image" else choose_type("", "bytes")

    def _path_value(self, name: str, path: str) -> Any:
        """Return the value of the column "path", "class" or "label", given the path of a file."""
        if name == "path":
            return path
        folder = path.partition("/")[0]
        assert self._labels is not None
        return folder if name == "class" else self._labels[folder]

    def _add_metadata(self, sample: dict[str, Any], path: str) -> None:
        """Add the values of a file's row in the metadata to its sample.

        For a missing value without a fill value, a `BadValue` is added. It raises when the sample
        is written.
        """
        assert self._metadata is not None
        assert self.columns is not None
        row = self._metadata.row(path) or {}
        for name in self._metadata.columns:
            if name not in self.columns:
                continue
            if row.get(name) is not None:
                sample[name] = row[name]
            elif name not in self.request.fill:
                sample[name] = self.bad_value(
                    f"{self._metadata.where}: {path!r} has no value: give fill= one, or leave the "
                    "column out with columns="
                )

    def _file_column(self, files: Sequence[SourceFile]) -> str:
        """Return "image" if all files are images; "file" if none is, or "file" is requested.

        Raise ValueError if only some files are images and "file" is not requested.
        """
        requested = {*(self.request.columns or ()), *self.request.encodings}
        other_files = [file for file in files if not _is_image(file.name)]
        if not other_files and "file" not in requested:
            return "image"
        if len(other_files) == len(files) or "file" in requested:
            return "file"
        count = quantity(len(other_files), "file")
        raise ValueError(
            f"{self.files.where}: {count} of {len(files):,} are no images, "
            f"such as {other_files[0].name!r}: give a glob of the images, such as '**/*.jpg', or "
            "columns={'file': 'bytes', ...} to store all files as bytes"
        )

    def _file_encoding(self, first: SourceFile) -> str:
        """Return the encoding of the files. For images, the first file determines it.

        The encodings "jpeg" and "png" both store image files of any format.
        """
        if self._column == "file":
            return "bytes"
        return file_type(first.name.rpartition(".")[2]).encoding or "png"

    def _class_labels(self, paths: Sequence[str]) -> dict[str, int] | None:
        """Return the label of each class: its position in the sorted names. None without labels."""
        option = self.request.options.get("labels")
        if option not in (None, True, False):
            raise TypeError(f"labels={option!r}: expected True, False or None")
        folders = {path.partition("/")[0] for path in paths if "/" in path}
        outside = next((path for path in paths if "/" not in path), None)
        if option is False or (option is None and (self._metadata is not None or not folders)):
            return None
        if outside is not None:
            raise ValueError(
                f"{self.files.where}: {outside!r} is in no folder, so it has no class: move it to "
                "a folder, or give reader_options={'labels': False} to write no labels"
            )
        if option is None and folders <= SPLITS:
            raise ValueError(
                f"{self.files.where}: the folders {', '.join(map(repr, sorted(folders)))} seem to "
                f"be splits: convert each to a dataset of its own, such as '.../{min(folders)}' to "
                f"'.../{min(folders)}'; if they are classes, give reader_options={{'labels': True}}"
            )
        return {name: number for number, name in enumerate(sorted(folders))}


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _is_metadata(name: str) -> bool:
    return name.rpartition("/")[2] in METADATA_NAMES


def _relative_paths(files: Sequence[SourceFile]) -> list[str]:
    """Return the paths of files relative to their source.

    If the source is a list of files, they are relative to the deepest folder that has all files.
    """
    names = [file.name for file in files]
    if not any("://" in name or name.startswith("/") for name in names):
        return names
    folders = [name.rpartition("/")[0].split("/") for name in names]
    shared = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return ["/".join(name.split("/")[shared:]) for name in names]


def read_files(files: Sequence[SourceFile]) -> Iterator[bytes]:
    """Yield the content of files in order. Threads read ahead.

    Raises
    ------
    StorageError
        If a file cannot be read.
    """
    is_local = files[0].path is not None
    limits, threads = _LOCAL_BATCH, _LOCAL_THREADS
    if not is_local:
        limits, threads = _REMOTE_BATCH, _REMOTE_THREADS
    pending: deque[tuple[int, Future[list[bytes]]]] = deque()
    pending_bytes = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="npstream-source")
    try:
        for batch in _batches(files, *limits):
            nbytes = sum(file.nbytes for file in batch)
            while pending and (
                len(pending) > threads or pending_bytes + nbytes > _MAX_PENDING_BYTES
            ):
                batch_bytes, future = pending.popleft()
                pending_bytes -= batch_bytes
                yield from future.result()
                del future  # frees the content before the next batch is waited for
            pending.append((nbytes, pool.submit(read_whole_files, batch)))
            pending_bytes += nbytes
        while pending:
            yield from pending.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(
    files: Sequence[SourceFile], max_files: int, max_bytes: int
) -> Iterator[list[SourceFile]]:
    batch: list[SourceFile] = []
    nbytes = 0
    for file in files:
        if batch and (len(batch) == max_files or nbytes + file.nbytes > max_bytes):
            yield batch
            batch, nbytes = [], 0
        batch.append(file)
        nbytes += file.nbytes
    if batch:
        yield batch
