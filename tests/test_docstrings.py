"""Each public object has a complete docstring in numpydoc's sections.

Public objects are those in the ``__all__`` of the modules that users import, the classes that
`Dataset.iter` and `explain` return, and the public members of all these classes. pytest runs the
examples as doctests of their modules.
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
import npstream.tokens
from npstream.iteration.iteration import Iteration
from npstream.reading.cost import Cost

MODULES = [npstream, npstream.cache, npstream.errors, npstream.testing, npstream.tokens]
if importlib.util.find_spec("torch"):
    MODULES.append(importlib.import_module("npstream.torch"))
    MODULES.append(importlib.import_module("npstream.streaming"))
    MODULES.append(importlib.import_module("npstream.streaming.base.util"))


def test_torch_is_among_the_modules():
    pytest.importorskip("torch")
    assert "npstream.torch" in {module.__name__ for module in MODULES}


NOT_CONSTRUCTED = "Made by `"
"""Text in the docstring of a class that users do not construct: it describes no parameters."""

INTERNAL = "For `npstream."
"""Text in the docstring of a function that users do not call: it needs no example."""


def public() -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each public class and function."""
    for module in MODULES:
        for name in module.__all__:
            if not isinstance(value := getattr(module, name), ModuleType):
                yield f"{module.__name__}.{name}", value
    yield "Iteration", Iteration
    yield "Cost", Cost


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that this package defines in a class."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "npstream":
            for name, value in vars(base).items():
                value = getattr(value, "__func__", value)  # the function of a classmethod
                if name[0] != "_" and isinstance(value, FunctionType | property | cached_property):
                    yield name, value


def all_objects() -> dict[str, Any]:
    """Return each public object once, under one of its names."""
    by_id: dict[int, tuple[str, Any]] = {}
    for name, value in public():
        by_id.setdefault(id(value), (name, value))
        for member, function in members(value) if isinstance(value, type) else ():
            by_id.setdefault(id(function), (f"{name}.{member}", function))
    return dict(by_id.values())


ALL = all_objects()
CALLABLE = {name: value for name, value in ALL.items() if isinstance(value, FunctionType | type)}
FUNCTIONS = {name: value for name, value in ALL.items() if isinstance(value, FunctionType)}


def text_of(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split())


def sections(value: Any) -> NumpyDocString:
    if isinstance(value, FunctionType):
        return FunctionDoc(value)
    return NumpyDocString(inspect.getdoc(value) or "")


def documented_parameters(value: Any) -> dict[str, Parameter]:
    """Return the parameters that a docstring describes, or the attributes of a dataclass."""
    docstring = sections(value)
    listed = docstring["Parameters"] or (docstring["Attributes"] if isinstance(value, type) else [])
    return {
        name: parameter
        for parameter in listed
        for name in parameter.name.replace("*", "").split(", ")
    }


def parameters(value: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters that a caller may pass."""
    has_init = "__init__" in vars(value) if isinstance(value, type) else True
    if NOT_CONSTRUCTED in text_of(value) or (not has_init and issubclass(value, BaseException)):
        return {}
    all_parameters = inspect.signature(value).parameters
    return {
        name: parameter for name, parameter in all_parameters.items() if name not in ("self", "cls")
    }


@pytest.mark.parametrize("name", ALL)
def test_docstrings_have_a_summary(name):
    assert " ".join(sections(ALL[name])["Summary"]).endswith(".")


@pytest.mark.parametrize("name", CALLABLE)
def test_parameters_are_described(name):
    expected = parameters(CALLABLE[name])
    documented = documented_parameters(CALLABLE[name]) if expected else {}
    assert [*documented] == [*expected]
    for parameter in documented.values():
        assert parameter.type, f"{parameter.name} has no type"
        assert " ".join(parameter.desc).strip(), f"{parameter.name} has no description"


@pytest.mark.parametrize("name", CALLABLE)
def test_defaults_are_described(name):
    documented = documented_parameters(CALLABLE[name])
    for parameter in parameters(CALLABLE[name]).values():
        kind = documented[parameter.name].type
        if parameter.default is parameter.empty:
            assert not re.search("optional|default", kind), f"{parameter.name} is required"
        elif parameter.default is None:
            assert re.search("optional$|default: None$", kind), (
                f"the default of {parameter.name} is None, but its type is described as {kind!r}"
            )
        else:
            default = default_text(parameter.default)
            assert kind.endswith(f"default: {default}"), (
                f"the default of {parameter.name} is {default}, but its type is described as "
                f"{kind!r}"
            )


def default_text(default: Any) -> str:
    if not isinstance(default, str):
        return repr(default)
    return '"' + default.encode("unicode_escape").decode() + '"'


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_described(name):
    docstring = sections(FUNCTIONS[name])
    annotation = inspect.signature(FUNCTIONS[name]).return_annotation
    results = [*docstring["Returns"], *docstring["Yields"]]
    assert bool(results) == (annotation not in ("None", "NoReturn")), annotation
    assert all(result.type for result in results)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_described(name):
    """The section Raises lists the exceptions that the function's own body raises."""
    listed = sections(FUNCTIONS[name])["Raises"]
    assert raised_names(FUNCTIONS[name]) <= {
        kind for entry in listed for kind in entry.type.split(", ")
    }


def raised_names(function: FunctionType) -> set[str]:
    """Return the names of the exceptions that the body of a function raises."""
    exceptions = {*vars(builtins), *npstream.errors.__all__}
    raised = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=kind))) if kind in exceptions:
                raised.add(kind)
    return raised


@pytest.mark.parametrize("name", CALLABLE)
def test_docstrings_have_an_example(name):
    value = CALLABLE[name]
    if isinstance(value, type) and issubclass(value, BaseException):
        return
    has_example = any(line.startswith(">>>") for line in sections(value)["Examples"])
    assert has_example or INTERNAL in text_of(value)
