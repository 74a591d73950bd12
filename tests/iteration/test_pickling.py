"""The check for functions that a new process cannot import."""

from __future__ import annotations

import functools
import pickle
import types

import pytest

from npstream.iteration import pickling
from npstream.iteration.pickling import require_importable


def importable(value=None):
    return value


class Callable:
    def __init__(self, function=None):
        self.function = function

    def __call__(self, value):
        return self.function(value)

    def method(self, value):
        return value


class Reduced(Callable):
    """A class whose pickle leaves out the function."""

    def __reduce__(self):
        return Reduced, ()


def local():
    def function(value):
        return value

    return function


@pytest.fixture(autouse=True)
def _a_process_is_spawned(monkeypatch):
    monkeypatch.setattr(pickling, "is_spawning", lambda: True)


@pytest.mark.parametrize(
    "function",
    [
        None, len, importable, functools.partial(importable, 1), Callable(importable), Callable,
        Callable(importable).method, Reduced(lambda value: value), str.upper, "text".join,
    ],
)  # fmt: skip
def test_objects_that_pickle_accepts_are_returned(function):
    pickle.dumps(function)
    assert require_importable("transform=", function) is function


@pytest.mark.parametrize(
    "function",
    [
        lambda value: value, local(), functools.partial(importable, lambda value: value),
        functools.partial(lambda value: value), Callable(local()), Callable(local()).method,
        functools.partial(functools.partial(local())),
    ],
)  # fmt: skip
def test_objects_that_pickle_rejects_raise(function):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(function)
    message = r"transform= is or holds '.*<(lambda|locals)>.*top level"
    with pytest.raises(TypeError, match=message):
        require_importable("transform=", function)


def test_a_function_of_an_interactive_session_is_rejected(monkeypatch):
    main = types.ModuleType("__main__")
    main.importable = importable
    monkeypatch.setitem(pickling.sys.modules, "__main__", main)
    monkeypatch.setattr(importable, "__module__", "__main__")
    with pytest.raises(TypeError, match="interactive session"):
        require_importable("transform=", importable)
    main.__file__ = "train.py"
    assert require_importable("transform=", importable) is importable


def test_the_check_runs_only_while_a_process_is_spawned(monkeypatch):
    monkeypatch.undo()  # of `_a_process_is_spawned`
    function = local()
    assert require_importable("transform=", function) is function
