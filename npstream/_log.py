"""The logger "npstream", at no cost to programs that do not log."""

from __future__ import annotations

import sys


def log(message: str, *args: object) -> None:
    """Log what happens, at level INFO; whoever listens has imported logging, a dear import."""
    if (logging := sys.modules.get("logging")) is not None:
        logging.getLogger("npstream").info(message, *args)
