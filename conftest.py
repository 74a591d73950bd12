"""Hooks for tests of every kind: tests/, benchmarks/, doctests, the fences of the documents."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import numpy as np
import pages
import pytest
from _pytest.fixtures import TopRequest

import npstream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

# The same examples at every run; `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile(
    "repeat", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeat")

# They hold no examples, and two modules cannot both be imported as `conftest`.
collect_ignore_glob = ["*/conftest.py"]

if importlib.util.find_spec("triton") is None:
    collect_ignore = ["npstream/torch/gather_kernel.py"]

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.fixture(autouse=True)
def _scratch_directory(request: pytest.FixtureRequest) -> None:
    """Run examples of the documentation in a directory, and a store in memory, of their own."""
    if not isinstance(request.node, pytest.Function):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
        if (stores := sys.modules.get("fsspec.implementations.memory")) is not None:
            stores.MemoryFileSystem.store.clear()


@pytest.fixture(autouse=True)
def _start_method() -> Generator[None]:
    """Restore the start method of processes, which litdata sets for the whole process."""
    before = multiprocessing.get_start_method(allow_none=True)
    yield
    if multiprocessing.get_start_method(allow_none=True) != before:
        multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def example(tmp_path: Path) -> npstream.Dataset:
    """Return the dataset of the docstrings' examples: three texts and their labels."""
    npstream.write(tmp_path / "example", {"text": ["zero", "one", "two"], "label": np.arange(3)})
    return npstream.open(tmp_path / "example")


@pytest.fixture
def datasets() -> Any:
    """Return Hugging Face's datasets; skip an example that needs it if it is not installed."""
    return pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _names_in_docstrings(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(np=np, npstream=npstream)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> PageFile | None:
    """Collect the examples of Markdown pages."""
    if file_path.suffix == ".md":
        return PageFile.from_parent(parent, path=file_path)
    return None


class PageFile(pytest.File):
    """A Markdown page."""

    def collect(self) -> Iterator[ExampleItem]:
        for example in pages.examples(self.path):
            name = f"line {example.line}"
            yield ExampleItem.from_parent(self, name=name, example=example)


class ExampleItem(pytest.Item):
    """An example of a page; a test with the fixtures that all tests use."""

    def __init__(self, name: str, parent: PageFile, example: pages.Example) -> None:
        super().__init__(name, parent)
        self.example = example

    def setup(self) -> None:
        # As pytest's own items of doctests do.
        self.funcargs: dict[str, Any] = {}
        fixtures = self.session._fixturemanager
        self._fixtureinfo = fixtures.getfixtureinfo(node=self, func=None, cls=None)
        self.fixturenames = self._fixtureinfo.names_closure
        self._request = TopRequest(self, _ispytest=True)  # type: ignore[arg-type]
        self._request._fillfixtures()

    def runtest(self) -> None:
        for name in self.example.missing:
            pytest.skip(f"could not import {name!r}")
        names = self.example.fixtures
        fixtures = {name: self._request.getfixturevalue(name) for name in names}
        try:
            pages.check(self.example, fixtures)
        except ModuleNotFoundError as error:
            pytest.skip(f"could not import {error.name!r}")  # an optional package

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, pages.Mismatch):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.example.line - 1, self.name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without",
        metavar="PACKAGES",
        default="",
        help="packages, with commas between them, whose absence may skip a test in CI",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _without_skips((yield), item.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _without_skips((yield), collector.config)


def _without_skips(report: Report, config: pytest.Config) -> Report:
    """Turn a skip into a failure in CI, unless `--without` names the package that is missing."""
    missing = re.search(r"could not import '(\w+)", str(report.longrepr))
    if missing and missing[1] in config.getoption("without").split(","):
        return report
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
