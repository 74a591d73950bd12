"""The command line: ``python -m npstream`` or ``npstream``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from npstream.errors import NpstreamError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit status.

    Parameters
    ----------
    arguments
        The command line's words; by default those of this process.
    """
    options = parser().parse_args(arguments)
    try:
        options.command(options)
    except (NpstreamError, OSError) as error:
        print(f"npstream: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(
        prog="npstream", description="Training data as a lazily loaded NumPy array."
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a tour over the sources of Python's library")
    demo.add_argument("--out", metavar="DIRECTORY", help="keep the dataset in this new directory")
    demo.set_defaults(command=run_demo)

    info = commands.add_parser("info", help="describe a dataset")
    info.add_argument("url", help="the dataset's directory")
    info.add_argument("--split", help="the sub-directory to open")
    info.set_defaults(command=run_info)

    precompile = commands.add_parser(
        "precompile", help="compile all kernels now, for the first load of later processes"
    )
    precompile.set_defaults(command=run_precompile)
    return root


def run_demo(options: argparse.Namespace) -> None:
    """Run ``npstream demo``."""
    from npstream.demo import demo

    demo(options.out)


def run_info(options: argparse.Namespace) -> None:
    """Run ``npstream info``."""
    from npstream.opening import open_dataset

    with open_dataset(options.url, split=options.split) as dataset:
        print(repr(dataset))


def run_precompile(_options: argparse.Namespace) -> None:
    """Run ``npstream precompile``."""
    from npstream.warm import precompile

    precompile()


if __name__ == "__main__":
    sys.exit(main())
