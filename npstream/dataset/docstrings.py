"""Shared parameter descriptions for the docstrings of a column's ndarray methods.

Tested in tests/test_docstrings.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

PARAMETERS = {
    "args": ("int or tuple of int", "The position; not needed if there is only one element."),
    "axes": ("int or tuple of int", "The order of the axes; by default the reverse."),
    "axis": ("int or tuple of int", "The axes; by default all, or that of the ravelled column."),
    "b": ("array_like", "The other array."),
    "casting": ("str", "Which conversions are allowed, as for `numpy.can_cast`."),
    "copy": ("bool", "Whether to always return a new array."),
    "correction": ("float", "An alias of `ddof`."),
    "ddof": ("float", "The divisor is the number of elements minus this."),
    "decimals": ("int", "Digits after the point."),
    "dtype": ("dtype", "The dtype of the result; by default NumPy's choice."),
    "initial": ("scalar", "An initial value for the reduction; by default none."),
    "keepdims": ("bool", "Whether to keep reduced axes, with length 1."),
    "kind": ("str", "The algorithm, as for `numpy.sort`; by default NumPy's choice."),
    "max": ("array_like", "Upper limits; by default none."),
    "mean": ("ndarray", "The mean, if known; by default it is computed."),
    "min": ("array_like", "Lower limits; by default none."),
    "options": ("Any", "Further arguments of NumPy's function."),
    "order": ("str", 'The order in memory: "C", "F", "A" or "K".'),
    "out": ("ndarray", "The array to fill and return; by default a new one."),
    "repeats": ("int or array_like of int", "Number of repetitions of each element."),
    "shape": ("int or tuple of int", "The new shape; one length may be -1."),
    "stable": ("bool", "Whether equal elements keep their order; by default, `kind` decides."),
    "subok": ("bool", "Accepted for compatibility with NumPy, without effect."),
    "where": ("array_like of bool", "The elements to include."),
}
"""Type and description of each parameter."""


def documented(
    returns: str, example: str, result: str, raises: str = "", **parameters: tuple[str, str]
) -> Callable[[F], F]:
    """Return a decorator that adds numpydoc's sections to the summary of a method.

    Parameters
    ----------
    returns : str
        The type of the method's result.
    example : str
        A call of the method, on a column of 0, 1 and 2.
    result : str
        The output of the example.
    raises : str, default: ""
        The exception that the method itself raises, and its condition, as in "TypeError: If ..."
    **parameters : tuple of str
        Type and description of parameters that differ from `PARAMETERS`.
    """

    def decorate(method: F) -> F:
        descriptions = PARAMETERS | parameters
        _, *listed = inspect.signature(method).parameters.values()
        lines = [inspect.getdoc(method) or ""]
        if listed:
            lines += _section("Parameters")
        for parameter in listed:
            kind, description = descriptions[parameter.name]
            plain = parameter.replace(annotation=parameter.empty, default=parameter.empty)
            name = str(plain)  # includes the stars of *args and **kwargs
            lines += [f"{name} : {kind}{_default(parameter)}", f"    {description}"]
        lines += [*_section("Returns"), returns]
        if raises:
            error, _, when = raises.partition(": ")
            lines += [*_section("Raises"), error, f"    {when}"]
        lines += [*_section("Examples"), f'>>> getfixture("example")["label"].{example}', result]
        method.__doc__ = "\n".join(lines) + "\n"
        return method

    return decorate


def _section(name: str) -> list[str]:
    return ["", name, "-" * len(name)]


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty:
        return ""
    if value is None:
        return ", optional"
    return f', default: "{value}"' if isinstance(value, str) else f", default: {value!r}"
