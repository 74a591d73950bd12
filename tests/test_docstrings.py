"""`help()` of each public object says all that a caller needs, in the sections of numpydoc.

Public is what `npstream` and the modules that users import name, what `Dataset.iter` and `explain`
return, and the public members of these classes. Examples run as doctests of their modules.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any

import pytest
from numpydoc.docscrape import FunctionDoc, NumpyDocString, Parameter

import npstream
import npstream.cache
import npstream.testing
from npstream.iteration.iteration import Iteration
from npstream.reading.cost import Cost

MODULES = [npstream, npstream.cache, npstream.errors, npstream.testing]
if importlib.util.find_spec("torch"):
    MODULES.append(importlib.import_module("npstream.torch"))


def test_torch_is_among_the_modules():
    pytest.importorskip("torch")
    assert "npstream.torch" in {module.__name__ for module in MODULES}


MADE = "Made by `"
"""What a class says if users do not construct it: its parameters are not for them."""

INTERNAL = "For `npstream."
"""What a function says if users do not call it: it has no example."""


def public() -> Iterator[tuple[str, Any]]:
    """Yield the names of public classes and functions, and these."""
    for module in MODULES:
        for name in module.__all__:
            if not isinstance(value := getattr(module, name), ModuleType):
                yield f"{module.__name__}.{name}", value
    yield "Iteration", Iteration
    yield "Cost", Cost


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public functions and properties of a class that this package defines."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "npstream":
            for name, value in vars(base).items():
                value = getattr(value, "__func__", value)  # of a classmethod
                if name[0] != "_" and isinstance(value, FunctionType | property | cached_property):
                    yield name, value


def every() -> dict[str, Any]:
    """Return each public object once, by a name for it."""
    found: dict[int, tuple[str, Any]] = {}
    for name, value in public():
        found.setdefault(id(value), (name, value))
        for member, function in members(value) if isinstance(value, type) else ():
            found.setdefault(id(function), (f"{name}.{member}", function))
    return dict(found.values())


ALL = every()
CALLABLE = {name: value for name, value in ALL.items() if isinstance(value, FunctionType | type)}
FUNCTIONS = {name: value for name, value in ALL.items() if isinstance(value, FunctionType)}


def text_of(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split())


def sections(value: Any) -> NumpyDocString:
    if isinstance(value, FunctionType):
        return FunctionDoc(value)
    return NumpyDocString(inspect.getdoc(value) or "")


def described(value: Any) -> dict[str, Parameter]:
    """Return the parameters that a docstring describes; those of a dataclass are its attributes."""
    text = sections(value)
    listed = text["Parameters"] or (text["Attributes"] if isinstance(value, type) else [])
    return {name: each for each in listed for name in each.name.replace("*", "").split(", ")}


def parameters(value: Any) -> dict[str, inspect.Parameter]:
    """Return what a caller may pass."""
    own = "__init__" in vars(value) if isinstance(value, type) else True
    if MADE in text_of(value) or (not own and issubclass(value, BaseException)):
        return {}
    found = inspect.signature(value).parameters
    return {name: each for name, each in found.items() if name not in ("self", "cls")}


@pytest.mark.parametrize("name", ALL)
def test_there_is_a_summary(name):
    assert " ".join(sections(ALL[name])["Summary"]).endswith(".")


@pytest.mark.parametrize("name", CALLABLE)
def test_parameters_are_described(name):
    expected = parameters(CALLABLE[name])
    there = described(CALLABLE[name]) if expected else {}
    assert [*there] == [*expected]
    for each in there.values():
        assert each.type, f"{each.name} has no type"
        assert " ".join(each.desc).strip(), f"{each.name} has no description"


@pytest.mark.parametrize("name", CALLABLE)
def test_defaults_are_named(name):
    there = described(CALLABLE[name])
    for each in parameters(CALLABLE[name]).values():
        kind = there[each.name].type
        if each.default is each.empty:
            assert not re.search("optional|default", kind), f"{each.name} is required"
        elif each.default is None:
            assert re.search("optional$|default: None$", kind), f"{each.name} is None: {kind}"
        else:
            assert kind.endswith(f"default: {shown(each.default)}"), f"{each}: {kind}"


def shown(default: Any) -> str:
    return f'"{default}"' if isinstance(default, str) else repr(default)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_described(name):
    text = sections(FUNCTIONS[name])
    result = inspect.signature(FUNCTIONS[name]).return_annotation
    found = [*text["Returns"], *text["Yields"]]
    assert bool(found) == (result not in ("None", "NoReturn")), result
    assert all(each.type for each in found)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_described(name):
    """What a function raises by itself is in its section Raises."""
    listed = sections(FUNCTIONS[name])["Raises"]
    assert raised(FUNCTIONS[name]) <= {kind for each in listed for kind in each.type.split(", ")}


def raised(function: FunctionType) -> set[str]:
    """Return the names of the exceptions that the body of a function raises."""
    known = {*vars(builtins), *npstream.errors.__all__}
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=kind))) if kind in known:
                found.add(kind)
    return found


@pytest.mark.parametrize("name", CALLABLE)
def test_there_is_an_example(name):
    value = CALLABLE[name]
    if isinstance(value, type) and issubclass(value, BaseException):
        return
    has_example = any(line.startswith(">>>") for line in sections(value)["Examples"])
    assert has_example or INTERNAL in text_of(value)
