"""Opening a dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npstream._log import log
from npstream.dataset import Dataset
from npstream.fetch import Fetcher
from npstream.formats.hashes import HASHES
from npstream.formats.index import parse_index
from npstream.selection import Selection
from npstream.source import open_source
from npstream.store import LocalStore, local_path

if TYPE_CHECKING:
    from npstream.shards import Verify


def open_dataset(
    url: str | os.PathLike[str],
    *,
    split: str | None = None,
    columns: Sequence[str] | Mapping[str, Any] | None = None,
    verify: Verify = "auto",
    allow_pickle: bool = False,
) -> Dataset:
    """Open a dataset; only its index is read.

    Parameters
    ----------
    url : str or os.PathLike
        The directory that holds ``index.json``.
    split : str, optional
        A directory below it, such as "train".
    columns : sequence of str, or mapping of str to dtype or str, optional
        A sequence: the columns to have. A mapping: what the bytes of those columns mean, as a
        dtype or an encoding, such as ``{"tokens": "ndarray:int64:2048"}``; others stay.
    verify : bool or str
        Which recorded hashes to check: "auto", those of shards that are decompressed; True, also
        those of files that are mapped; False, none; or the name of the hash to check in both.
    allow_pickle : bool
        Whether columns may be unpickled, which can run code.

    Returns
    -------
    Dataset

    Raises
    ------
    FormatError
        If the index does not follow the format.
    StorageError
        If there is none.

    Examples
    --------
    >>> import npstream
    >>> path = getfixture("tmp_path") / "numbers"
    >>> report = npstream.write(path, {"x": np.arange(10)})
    >>> npstream.open(path)[3]
    {'x': np.int64(3)}
    """
    if isinstance(columns, str):
        raise TypeError(f"columns={columns!r}: expected a list of names, [{columns!r}]")
    if not isinstance(verify, bool) and verify != "auto" and verify not in HASHES:
        raise ValueError(
            f"verify={verify!r}: expected True, False, 'auto' or one of {', '.join(HASHES)}"
        )
    root = local_path(url)
    store = LocalStore(os.path.join(root, *split.split("/")) if split else root)
    index = parse_index(store.read("index.json"), store.where("index.json"))
    fetcher = Fetcher(index, store, verify)
    if isinstance(verify, str) and verify != "auto" and len(index):
        fetcher.shards.require_hash(verify)
    source, names = open_source(fetcher, columns, allow_pickle)
    log(
        "opened %s: %d samples in %d shards, columns %s, verify=%r",
        index.where, index.samples, len(index), ", ".join(names), verify,
    )  # fmt: skip
    return Dataset(source, Selection.all(index.samples), names)
