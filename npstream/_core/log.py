"""Functions that log to the logger "npstream", at no cost to programs that do not log.

Tested in tests/storage/test_requests.py.
"""

from __future__ import annotations

import sys


def log(message: str, *args: object) -> None:
    """Log a message at level INFO, if the program has imported ``logging``.

    This function does not import ``logging``, because the import takes milliseconds. Arguments that
    are functions are called only if the message is logged.
    """
    if (logging := sys.modules.get("logging")) is None:
        return
    logger = logging.getLogger("npstream")
    if logger.isEnabledFor(logging.INFO):
        logger.info(message, *[arg() if callable(arg) else arg for arg in args])


def warn(message: str, *args: object) -> None:
    """Log a message at level WARNING; Python prints it even if logging is not configured."""
    import logging

    logging.getLogger("npstream").warning(message, *args)
