"""Provide `merge_index`, which joins datasets below a directory by one index.

Tested in tests/streaming/test_merging.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any, TypeAlias

from npstream._core.log import warn
from npstream.storage.local import open_store
from npstream.tools.merge import merge

INDEX_NAME = "index.json"

Place: TypeAlias = "str | tuple[str, str]"
"""A directory or URL; or a pair of a local directory and a URL with the same files."""


def merge_index(*args: Any, **kwargs: Any) -> None:
    """Write one index for several datasets, as `npstream.merge` does.

    There are two forms: ``merge_index(index_file_urls, out, keep_local, download_timeout)``, and
    ``merge_index(out, keep_local, download_timeout)``, which finds all indexes below `out`.

    Parameters
    ----------
    *args, **kwargs : Any
        `index_file_urls` is a list of paths or URLs of index files, or of pairs of a local and a
        remote one. `out` is the directory above the datasets, or a pair. `keep_local` is True by
        default; if False, the local directory of a pair is removed. `download_timeout` is the
        number of seconds that a request may take, 60 by default.

    Raises
    ------
    TypeError
        If the arguments fit neither form.
    ValueError
        If a dataset is not below `out`, or has other columns than the first one.
    FileExistsError
        If `out` holds an index already.
    FileNotFoundError
        If there is no dataset.

    Examples
    --------
    >>> for day in range(2):
    ...     report = npstream.write(f"logs/day{day}", {"x": np.arange(3) + 10 * day})
    >>> merge_index("logs")
    >>> len(npstream.open("logs"))
    6
    """
    first = args[0] if args else kwargs.get("index_file_urls")
    if isinstance(first, list):
        _merge_listed(*args, **kwargs)
    else:
        _merge_below(*args, **kwargs)


def _merge_listed(
    index_file_urls: Sequence[Place],
    out: Place,
    keep_local: bool = True,
    download_timeout: float = 60,
) -> None:
    """Merge the datasets with these index files."""
    if not index_file_urls or not out:
        warn("merge_index: nothing was merged, as there are no index files or no out=")
        return
    places = list(dict.fromkeys(index_file_urls))
    local, remote = (None, out) if isinstance(out, str) else out
    remote_urls = [_folder(place if isinstance(place, str) else place[1]) for place in places]
    local_urls = [_folder(place if isinstance(place, str) else place[0]) for place in places]
    if "://" not in remote and all(map(_has_index, local_urls)):
        remote_urls = local_urls
    merge(remote_urls, remote, timeout=download_timeout)
    if local is None:
        return
    if keep_local and all(map(_has_index, local_urls)):
        merge(local_urls, local, timeout=download_timeout)
    elif not keep_local:
        shutil.rmtree(local, ignore_errors=True)


def _merge_below(out: Place, keep_local: bool = True, download_timeout: float = 60) -> None:
    """Merge all datasets below a directory."""
    local, remote = (None, out) if isinstance(out, str) else out
    for place in filter(None, (remote, local if keep_local else None)):
        store = open_store(place, timeout=download_timeout)
        folders = [name for name, _ in store.names() if name.endswith(f"/{INDEX_NAME}")]
        if not folders:
            if place == local:
                continue
            raise FileNotFoundError(f"{place!r}: there is no {INDEX_NAME} in a directory below")
        root = place.rstrip("/")
        merge([f"{root}/{_folder(name)}" for name in folders], place, timeout=download_timeout)
    if local is not None and not keep_local:
        shutil.rmtree(local, ignore_errors=True)


def _folder(url: str) -> str:
    """Return the directory of an index file."""
    url = url.strip().rstrip("/")
    return url.removesuffix(INDEX_NAME).rstrip("/") if url.endswith(INDEX_NAME) else url


def _has_index(folder: str) -> bool:
    return "://" not in folder and os.path.isfile(os.path.join(folder, INDEX_NAME))
