"""The commands ``verify``, ``index``, ``demo``, ``precompile`` and ``selftest``.

Tested in tests/test_main.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from npstream.commands.options import (
    Commands,
    add_command,
    add_json_option,
    add_pairs_option,
    pairs_to_dict,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["add_demo", "add_index", "add_precompile", "add_selftest", "add_verify"]


def add_verify(commands: Commands) -> None:
    """Add ``npstream verify``."""
    verify = add_command(
        commands,
        "verify",
        "read and check whole datasets",
        _run_verify,
        "Read whole datasets and check them. The exit status is 1 if there is a problem.",
    )
    verify.add_argument("urls", nargs="+", metavar="url", help="the datasets' directories or URLs")
    verify.add_argument("--split", metavar="NAME", help="the subdirectory to check")
    verify.add_argument(
        "--index", metavar="URL", help="the side-car's directory or URL, if not the dataset's"
    )
    add_json_option(verify, "print the report of each dataset as a line of JSON")
    add_pairs_option(verify, "--storage-options", "driver options of the store")


def _run_verify(options: argparse.Namespace) -> int:
    """Return 1 if a dataset has problems."""
    from dataclasses import asdict

    from npstream.commands.output import print_json, run_for_each, style_text
    from npstream.storage.urls import join_url
    from npstream.tools.verify import verify_dataset

    def verify(url: str) -> int:
        if options.split is not None:
            url = join_url(url, options.split)
        report = verify_dataset(
            url, index=options.index, storage_options=pairs_to_dict(options.storage_options)
        )
        if options.json:
            print_json(asdict(report))
        else:
            *problems, verdict = str(report).split("\n")
            for problem in problems:
                print(style_text(problem, "red"))
            print(style_text(verdict, "red" if report.problems else "green"))
        return int(bool(report.problems))

    if options.index is not None and len(options.urls) > 1:
        options.parser.error("--index is the side-car of one dataset: name one URL")
    return run_for_each(options.urls, verify)


def add_index(commands: Commands) -> None:
    """Add ``npstream index``."""
    index = add_command(
        commands,
        "index",
        "build the side-cars of datasets: hashes, statistics",
        _run_index,
        "Build the side-cars of datasets, with hashes, statistics and scalar columns. An "
        "interrupted command continues where it stopped.",
    )
    index.add_argument("urls", nargs="+", metavar="url", help="the datasets' directories or URLs")
    index.add_argument("--split", metavar="NAME", help="the subdirectory with the dataset")
    index.add_argument(
        "--out", metavar="URL", help="the side-car's directory or URL, if not the dataset's"
    )
    index.add_argument(
        "--columns", nargs="*", metavar="NAME", help="the scalar columns to store; all by default"
    )
    index.add_argument("--no-hashes", action="store_true", help="omit the hashes of shard parts")
    add_pairs_option(index, "--storage-options", "driver options of the store")


def _run_index(options: argparse.Namespace) -> int:
    from npstream.commands.output import run_for_each
    from npstream.storage.urls import join_url
    from npstream.tools.index_builder import build_index

    def build(url: str) -> None:
        path = build_index(
            url if options.split is None else join_url(url, options.split),
            options.out,
            columns=options.columns,
            hashes=not options.no_hashes,
            storage_options=pairs_to_dict(options.storage_options),
        )
        print(path, flush=True)

    if options.out is not None and len(options.urls) > 1:
        options.parser.error("--out is the place of one side-car: name one URL")
    return run_for_each(options.urls, build)


def add_demo(commands: Commands) -> None:
    """Add ``npstream demo``."""
    demo = add_command(
        commands, "demo", "a tour, with Python's standard library as data", _run_demo
    )
    demo.add_argument("--out", metavar="DIRECTORY", help="keep the dataset in this new directory")


def _run_demo(options: argparse.Namespace) -> None:
    from npstream.tools.demo import demo

    demo(options.out)


def add_precompile(commands: Commands) -> None:
    """Add ``npstream precompile``."""
    add_command(
        commands,
        "precompile",
        "compile all kernels now, for a fast first load in later processes",
        _run_precompile,
    )


def _run_precompile(_options: argparse.Namespace) -> None:
    from npstream.tools.precompile import precompile

    precompile()


def add_selftest(commands: Commands) -> None:
    """Add ``npstream selftest``."""
    add_command(
        commands,
        "selftest",
        "check this installation, in under a minute",
        _run_selftest,
        "Check this installation, in under a minute. The exit status is 1 if a check fails.",
    )


def _run_selftest(_options: argparse.Namespace) -> int:
    """Return 1 if a check failed."""
    from npstream.tools.selftest import selftest

    return int(not selftest())
