"""The command line: ``python -m npstream`` or ``npstream``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from npstream import __version__
from npstream._core.arguments import quantity
from npstream._core.redaction import redact, url_secrets
from npstream.conversion.command import add_convert_command
from npstream.errors import NpstreamError
from npstream.tools.commands import add_merge_and_copy


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line's arguments; by default those of this process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    root = build_parser(words)
    if not words:
        root.print_help()
        return 0
    options = root.parse_args(words)
    try:
        return options.command(options) or 0
    except (NpstreamError, OSError, ValueError) as error:
        notes: list[str] = getattr(error, "__notes__", [])
        print("\n".join([f"npstream: {error}", *notes]), file=sys.stderr)
        return 1


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    It removes the secrets of URLs in `words`, the arguments to parse, from its error messages.
    """

    class Parser(argparse.ArgumentParser):
        """A parser whose error messages do not contain the secrets of URLs."""

        def error(self, message: str) -> NoReturn:
            if message.endswith("required: COMMAND"):
                message = f"{' '.join(map(repr, words))} names no command; see npstream --help"
            super().error(redact(message, (part for word in words for part in url_secrets(word))))

    root = Parser(prog="npstream", description="Training data as a lazily loaded NumPy array.")
    root.add_argument("-v", "-V", "--version", action="version", version=f"npstream {__version__}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a tour, with Python's standard library as data")
    demo.add_argument("--out", metavar="DIRECTORY", help="keep the dataset in this new directory")
    demo.set_defaults(command=run_demo)

    info = commands.add_parser("info", help="describe a dataset")
    info.add_argument("url", help="the dataset's directory")
    info.add_argument("--split", help="the sub-directory to open")
    info.set_defaults(command=run_info)

    cache = commands.add_parser("cache", help="show, fill or empty the cache of remote datasets")
    actions = cache.add_subparsers(required=True, metavar="{info,clear,fetch}")
    for name, run, summary in (
        ("info", run_cache_info, "show its directory, its size and its limit"),
        ("clear", run_cache_clear, "remove its files; running programs are not affected"),
    ):
        action = actions.add_parser(name, help=summary)
        action.add_argument("directory", nargs="?", help="the cache, if not the default one")
        action.set_defaults(command=run)

    fetch = actions.add_parser("fetch", help="fetch a dataset into the cache before it is read")
    fetch.add_argument("url", help="the dataset's URL")
    fetch.add_argument("--split", help="the sub-directory to fetch")
    fetch.add_argument("--cache", metavar="DIRECTORY", help="the cache, if not the default one")
    fetch.add_argument("--limit", help="the bytes that the cache may take, such as 100GB")
    fetch.add_argument("--index", help="the side-car's directory or URL, if not the dataset's")
    fetch.set_defaults(command=run_cache_fetch)

    add_merge_and_copy(commands)
    index = commands.add_parser("index", help="build a dataset's side-car: hashes, statistics")
    index.add_argument("url", help="the dataset's directory, or its URL")
    index.add_argument("--out", help="the side-car's directory or URL, if not the dataset's")
    index.add_argument("--columns", nargs="*", help="the scalar columns to store; all by default")
    index.add_argument("--no-hashes", action="store_true", help="omit the hashes of shard parts")
    index.set_defaults(command=run_index)

    verify = commands.add_parser("verify", help="read and check a whole dataset")
    verify.add_argument("url", help="the dataset's directory, or its URL")
    verify.add_argument("--index", help="the side-car's directory or URL, if not the dataset's")
    verify.set_defaults(command=run_verify)

    add_convert_command(commands)
    precompile = commands.add_parser(
        "precompile", help="compile all kernels now, for a fast first load in later processes"
    )
    precompile.set_defaults(command=run_precompile)
    check = commands.add_parser("selftest", help="check this installation, in under a minute")
    check.set_defaults(command=run_selftest)
    return root


def run_demo(options: argparse.Namespace) -> None:
    """Run ``npstream demo``."""
    from npstream.tools.demo import demo

    demo(options.out)


def run_info(options: argparse.Namespace) -> None:
    """Run ``npstream info``."""
    from npstream.dataset.opening import open_dataset

    with open_dataset(options.url, split=options.split) as dataset:
        print(repr(dataset))


def run_cache_info(options: argparse.Namespace) -> None:
    """Run ``npstream cache info``."""
    from npstream.cache.cache import info

    print(info(options.directory))


def run_cache_clear(options: argparse.Namespace) -> None:
    """Run ``npstream cache clear``."""
    from npstream.cache.cache import clear

    print(f"{quantity(clear(options.directory), 'byte')} removed")


def run_cache_fetch(options: argparse.Namespace) -> None:
    """Run ``npstream cache fetch``."""
    from npstream.cache.cache import info
    from npstream.dataset.opening import open_dataset

    with open_dataset(
        options.url,
        split=options.split,
        cache=options.cache,
        cache_limit=options.limit,
        index=options.index,
    ) as dataset:
        print(dataset.explain())
        dataset.prefetch()
    print(info(options.cache))


def run_index(options: argparse.Namespace) -> None:
    """Run ``npstream index``."""
    from npstream.tools.index_builder import build_index

    hashes = not options.no_hashes
    print(build_index(options.url, options.out, columns=options.columns, hashes=hashes))


def run_verify(options: argparse.Namespace) -> int:
    """Run ``npstream verify``; return 1 if the dataset has problems."""
    from npstream.tools.verify import verify_dataset

    report = verify_dataset(options.url, index=options.index)
    print(report)
    return int(bool(report.problems))


def run_precompile(_options: argparse.Namespace) -> None:
    """Run ``npstream precompile``."""
    from npstream.tools.precompile import precompile

    precompile()


def run_selftest(_options: argparse.Namespace) -> int:
    """Run ``npstream selftest``; return 1 if a check failed."""
    from npstream.tools.selftest import selftest

    return int(not selftest())


if __name__ == "__main__":
    sys.exit(main())
