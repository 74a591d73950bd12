"""Self-test of an installation: write, read and iterate, and compare the results with NumPy.

Tested in tests/test_main.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np

import npstream
from npstream._core.arguments import quantity

__all__ = ["CHECKS", "EXTRAS", "selftest"]

_Columns: TypeAlias = "dict[str, Any]"
"""Name of a column -> its values: an array or a list."""

SAMPLES = 1000
"""Number of samples in the test dataset."""

EXTRAS = {
    "torch": "torch", "s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs", "oci": "ocifs",
    "sftp": "paramiko", "http": "aiohttp", "hf": "huggingface_hub", "fast": "obstore",
    "codecs": "brotli", "images": "PIL", "arrow": "pyarrow", "pandas": "pandas", "polars": "polars",
    "datasets": "datasets", "plot": "matplotlib", "sources": "h5py", "awkward": "awkward",
    "progress": "tqdm", "dtypes": "ml_dtypes", "dask": "dask",
}  # fmt: skip
"""Each extra that the extra `all` installs -> a module that it installs."""


def selftest(show: Callable[[str], None] = print) -> bool:
    """Run all checks, report the result of each, and return True if all pass.

    Parameters
    ----------
    show : callable, default: print
        Called with each line of output.

    Examples
    --------
    >>> lines = []
    >>> selftest(lines.append)
    True
    >>> lines[-1]
    'npstream works'
    """
    missing = [extra for extra, module in EXTRAS.items() if find_spec(module) is None]
    show(f"npstream {npstream.__version__}, NumPy {np.__version__}")
    show(f"extras that are not installed: {', '.join(missing) or 'none'}")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="npstream-selftest-") as directory:
        data = make_columns()
        for name, check in CHECKS.items():
            start = time.perf_counter()
            try:
                check(directory, data)
            except Exception as error:
                failed += 1
                show(f"FAILED  {name}: {type(error).__name__}: {error}")
            else:
                show(f"ok      {name} ({time.perf_counter() - start:.1f} s)")
    show(f"{quantity(failed, 'check')} failed" if failed else "npstream works")
    return not failed


def make_columns() -> _Columns:
    """Return columns of numbers, arrays of one shape, arrays of several shapes, and text."""
    rng = np.random.default_rng(0)
    return {
        "label": np.arange(SAMPLES),
        "pixels": rng.random((SAMPLES, 4, 4), np.float32),
        "tokens": [np.arange(1 + n % 7, dtype=np.uint16) for n in range(SAMPLES)],
        "text": [f"text {n}" for n in range(SAMPLES)],
    }


def _equal(actual: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


def _check_write(directory: str, data: _Columns) -> None:
    path = f"{directory}/data"
    report = npstream.write(path, data, shard_size="32KiB", compression="zstd", hashes=["xxh3_64"])
    _equal(report.samples, SAMPLES)
    with npstream.open(path) as ds:
        _equal(len(ds), SAMPLES)


def _check_samples(directory: str, data: _Columns) -> None:
    with npstream.open(f"{directory}/data") as ds:
        for row in (0, 17, -1):
            sample = ds[row]
            for name, values in data.items():
                _equal(sample[name], values[row])
        _equal([sample["label"] for sample in ds[::-100]], data["label"][::-100])


def _check_batches(directory: str, data: _Columns) -> None:
    with npstream.open(f"{directory}/data") as ds:
        rows = np.random.default_rng(1).integers(0, SAMPLES, 300)
        batch = ds[rows].load()
        _equal(batch["label"], data["label"][rows])
        _equal(batch["pixels"], data["pixels"][rows])
        for tokens, row in zip(batch["tokens"], rows, strict=True):
            _equal(tokens, data["tokens"][row])
        _equal(batch["text"].to_list(), [data["text"][row] for row in rows])


def _check_columns(directory: str, data: _Columns) -> None:
    with npstream.open(f"{directory}/data") as ds:
        _equal(ds["pixels"][::3, 1], data["pixels"][::3, 1])
        _equal(ds[ds["label"] % 7 == 3]["label"], data["label"][3::7])
        np.testing.assert_allclose(ds["pixels"].mean(axis=0), data["pixels"].mean(axis=0), 1e-5)


def _check_resumed_ranks(directory: str, data: _Columns) -> None:
    epochs: list[Any] = []
    with npstream.open(f"{directory}/data") as ds:
        for rank in range(2):
            epoch = [batch.ids for batch in ds.iter(rank, 2, batch_size=50, shuffle=True, seed=3)]
            interrupted = ds.iter(rank, 2, batch_size=50, shuffle=True, seed=3)
            first = next(iter(interrupted)).ids
            resumed = ds.iter(rank, 2, batch_size=50, shuffle=True, seed=3)
            resumed.load_state_dict(interrupted.state_dict())
            later = [batch.ids for batch in resumed]
            _equal(np.concatenate([first, *later]), np.concatenate(epoch))
            epochs += epoch
    _equal(np.sort(np.concatenate(epochs)), np.arange(SAMPLES))


def _check_hashes(directory: str, data: _Columns) -> None:
    _equal(npstream.verify_dataset(f"{directory}/data").problems, ())


def _check_remote(directory: str, data: _Columns) -> None:
    url = f"memory://npstream-selftest{directory}"
    npstream.write(url, data)
    with npstream.open(url, cache=f"{directory}/cache") as remote:
        _equal(remote[17]["pixels"], data["pixels"][17])
        _equal(remote["label"], data["label"])
        _equal(remote[::2].load()["text"].to_list(), data["text"][::2])


CHECKS: dict[str, Callable[[str, _Columns], None]] = {
    "write and open": _check_write,
    "samples and views": _check_samples,
    "batches": _check_batches,
    "columns and filters": _check_columns,
    "shuffled iteration of two ranks, resumed": _check_resumed_ranks,
    "hashes and statistics of the side-car": _check_hashes,
    "an object store in memory, with a cache": _check_remote,
}
"""The checks in the order in which they run: the first writes the dataset that others read."""
