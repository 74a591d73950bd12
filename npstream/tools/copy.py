"""Provide `copy`, which writes the samples of a view as a new dataset, in their stored bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import name_list
from npstream.dataset.column import Column
from npstream.dataset.dataset import Dataset
from npstream.errors import short_traceback
from npstream.storage.local import open_store
from npstream.writing.text import TEXT_FORMATS
from npstream.writing.writer import write

if TYPE_CHECKING:
    from npstream.reading.source import Source
    from npstream.writing.report import WriteReport

__all__ = ["copy"]

SAME = "source"
"""The value of an argument that stands for the setting of the source."""

_SHARD_BYTES = 1 << 26
"""Default maximum bytes of a shard if the source records no limit."""

_MAX_SHARD_BYTES = (1 << 32) - 1
"""Maximum bytes of a shard, because MDS stores offsets as uint32."""


def copy(
    view: Dataset,
    url: str | os.PathLike[str],
    *,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    format: str = SAME,
    separator: str | None = None,
    newline: str | None = None,
    sidecar: bool = True,
    shard_size: int | str | None = SAME,
    shard_samples: int | None = None,
    compression: str | None = SAME,
    hashes: Iterable[str] = SAME,
    resume: bool = False,
    progress: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport:
    """Copy the samples of a view to a new dataset, without decoding them.

    By default, the new dataset has the settings with which the first shard of the source was
    written. The dataset becomes visible when all its files are stored, as with `write`.

    Parameters
    ----------
    view : Dataset
        A dataset, a view such as ``ds[mask]`` or ``ds[["text"]]``, or a mixture. It may be remote.
    url : str or os.PathLike
        A local directory or a URL; it must not hold a dataset.
    columns : sequence of str, or mapping of str to str, optional
        The columns to copy. A mapping gives their encodings, as for `write`. Only values of columns
        with another encoding are decoded. By default all columns of the view are copied.
    format : str, default: "source"
        ``"mds"``, ``"jsonl"``, ``"csv"``, ``"tsv"`` or ``"xsv"``; by default that of the source.
        Values are decoded if the format changes.
    separator, newline : str, optional
        The text between two fields of ``"xsv"``, and after each line of a text format. By default
        those of the source if the format is the same, else those of `write`.
    sidecar : bool, default: True
        Whether to also write the side-car.
    shard_size : int, str or None, default: "source"
        Maximum bytes of a shard before compression; None for a single shard. By default the limit
        that the index of the source records. If there is none, 64 MiB, or the bytes of the largest
        shard of the source if that is more.
    shard_samples : int, optional
        Maximum number of samples of a shard.
    compression : str or None, default: "source"
        The codec of the shards, as for `write`; None for no compression. By default that of the
        source.
    hashes : iterable of str, default: "source"
        Hashes that the index records for each file; an empty list for none. By default those of the
        source.
    resume : bool, default: False
        Whether to keep the stored shards if the copy fails or the process is killed, and to
        continue after them, as for `write`.
    progress : bool, optional
        Whether to show samples, bytes and their rate, as for `write`.
    storage_options : mapping, optional
        Options of the storage driver, if `url` is a URL. The options of the source are those with
        which it was opened.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, including all retries.
    retries : int, default: 4
        Number of retries of a request.

    Returns
    -------
    WriteReport
        The summary of the new dataset.

    Raises
    ------
    TypeError
        If `view` is not a Dataset, or has a transform.
    ValueError
        If `url` is the source itself, the view has several axes, or a setting is invalid.
    ColumnError
        If the view lacks a column.
    FileExistsError
        If `url` holds a dataset or a part of one.
    FormatError, IntegrityError
        If a sample of the source is damaged.
    StorageError
        If a file cannot be read or stored.

    See Also
    --------
    write : Writes data of any kind. Its settings have fixed defaults.
    merge : Joins datasets below one directory without copying them.

    Examples
    --------
    >>> report = npstream.write("letters", {"letter": list("abcde")}, compression="zstd")
    >>> ds = npstream.open("letters")
    >>> copy(ds[ds["letter"] > "b"], "last").samples
    3
    >>> list(npstream.open("last")["letter"])
    ['c', 'd', 'e']
    """
    with short_traceback:
        view = _check_view(view)
        _require_other_url(view._source, url, storage_options)
        if columns is not None and not isinstance(columns, Mapping):
            view, columns = view[name_list(columns)], None
        settings = _settings(view._source)
        if format == SAME:
            format = settings["format"]
        if format == settings["format"]:
            newline = settings["newline"] if newline is None else newline
            separator = settings["separator"] if separator is None else separator
        return write(
            url,
            view,
            columns=columns,
            format=format,
            separator=separator,
            newline=newline,
            sidecar=sidecar,
            shard_size=settings["shard_size"] if shard_size == SAME else shard_size,
            shard_samples=shard_samples,
            compression=settings["compression"] if compression == SAME else compression,
            hashes=settings["hashes"] if hashes == SAME else hashes,
            resume=resume,
            progress=progress,
            storage_options=storage_options,
            timeout=timeout,
            retries=retries,
        )


def _check_view(view: Any) -> Dataset:
    """Return a view whose samples can be copied; raise TypeError for other objects."""
    if isinstance(view, Column):
        raise TypeError("view is a Column: select it as a dataset of one column, ds[['name']]")
    if not isinstance(view, Dataset):
        fix = ": open it first with npstream.open" if isinstance(view, str | os.PathLike) else ""
        raise TypeError(
            f"view is of type {type(view).__name__}; expected a Dataset or a view of one{fix}. "
            "npstream.write takes other data"
        )
    if view._transform is not None or view._source.has_transforms:
        raise TypeError(
            "view has a transform, which copy would ignore: npstream.write(url, view) writes the "
            "transformed samples; view.with_transform(None) has none"
        )
    return view


def _require_other_url(source: Source, url: Any, storage_options: Any) -> None:
    """Raise ValueError if `url` is a dataset whose samples are copied."""
    target = open_store(url, storage_options, argument="url")
    sources = [member.source for member in source.members] or [source]
    for root in [source.fetcher.shards.root for source in sources]:
        if target.is_local:
            is_same = os.path.realpath(target.root) == os.path.realpath(root)
        else:
            is_same = target.root.rstrip("/") == root.rstrip("/")
        if is_same:
            raise ValueError(
                f"url={target.root!r} is the source of the view: copy to another directory or URL"
            )


def _settings(source: Source) -> dict[str, Any]:
    """Return the arguments of `write` with which the first shard of a source was written."""
    index = source.index
    limit: int | None = None
    name, compression, hashes, separator, newline = "mds", None, list[str](), None, None
    if len(index):
        schema, files = index.schemas[index.schema_ids[0]], index.files(0)
        public_names = {stored: name for name, stored in TEXT_FORMATS.items()}
        name = public_names.get(schema.format, "mds")
        compression, hashes = files.compression, [*files.data.hashes]
        if name != "mds":
            separator, newline = schema.separator if name == "xsv" else None, schema.newline
        limit = index.size_limit(0)
        if limit is None:
            limit = min(max(_SHARD_BYTES, int(index.nbytes.max())), _MAX_SHARD_BYTES)
    return {
        "format": name,
        "separator": separator,
        "newline": newline,
        "shard_size": limit or _SHARD_BYTES,
        "compression": compression,
        "hashes": hashes,
    }
