"""Provide `require_importable`, which checks the functions that a started process must import.

Pickle stores a function as the name of its module and its own name. So it cannot store a lambda or
a function that another function defines. The check runs only while multiprocessing starts a
process: `copy.deepcopy` and other pickling libraries, such as cloudpickle, accept such functions.
"""

from __future__ import annotations

import copyreg
import functools
import operator
import sys
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any, TypeVar

from npstream._core.fork import is_spawning

__all__ = ["require_importable"]

T = TypeVar("T")

_MAX_DEPTH = 4
"""Maximum depth of the search in nested functions and objects, such as partials of partials."""


def require_importable(name: str, function: T) -> T:
    """Return a user's function; raise if a process is being started that cannot import it.

    Parameters
    ----------
    name : str
        The function's name in messages.
    function : callable or None

    Raises
    ------
    TypeError
        If multiprocessing pickles the function, and the new process could not import it by its
        name. The same holds for each function that `function` holds, such as that of a partial.

    Examples
    --------
    >>> require_importable("transform=", len)
    <built-in function len>
    """
    if function is not None and is_spawning():
        for part in _functions(function, _MAX_DEPTH):
            if not _is_importable(part):
                raise TypeError(
                    f"{name} is or holds {part.__qualname__!r} of the module "
                    f"{part.__module__!r}, and the start method of this process pickles it, which "
                    "finds a function only by its name in a file: define it at the top level of a "
                    "module, not as a lambda, in another function or in an interactive session; or "
                    "fork the processes (multiprocessing_context='fork' of a DataLoader)"
                )
    return function


def _functions(value: Any, depth: int) -> Iterator[FunctionType | type]:
    """Yield the functions and classes that pickling a callable stores by name."""
    if isinstance(value, FunctionType | type):
        yield value
        return
    parts: list[Any] = []
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        parts = [value.__self__]
    elif _has_plain_reduce(type(value)):
        parts = [type(value), *getattr(value, "__dict__", {}).values()]
    if depth:
        for part in parts:
            if callable(part):
                yield from _functions(part, depth - 1)


def _has_plain_reduce(kind: type) -> bool:
    """Return True if instances of a class are pickled as their class and their attributes."""
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    is_plain = all(getattr(kind, name) is getattr(object, name) for name in names)
    return is_plain and kind not in copyreg.dispatch_table


def _is_importable(function: FunctionType | type) -> bool:
    """Return True if a started process finds this function, or class, by its name."""
    if type(function) in copyreg.dispatch_table:
        return True  # pickled by a registered function, not by its name
    module = sys.modules.get(function.__module__)
    if function.__module__ == "__main__" and not hasattr(module, "__file__"):
        return False  # an interactive session, whose code no other process has
    if isinstance(function, type):
        # Do not look up the name: the class of a C extension may have a name by which it cannot be
        # imported. Only classes that are defined in a function are refused.
        return "<locals>" not in function.__qualname__
    try:
        return operator.attrgetter(function.__qualname__)(module) is function
    except AttributeError:
        return False
