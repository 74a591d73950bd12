"""Docstrings of the methods that a column shares with an ndarray: parameters are described once.

Tested in tests/test_docstrings.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

PARAMETERS = {
    "args": ("int or tuple of int", "The position; none if there is one element."),
    "axes": ("int or tuple of int", "The order of the axes; by default the reverse."),
    "axis": ("int or tuple of int", "Along which axes; by default along all, or ravelled."),
    "b": ("array_like", "The other array."),
    "casting": ("str", "Which conversions are allowed, as for `numpy.can_cast`."),
    "copy": ("bool", "Whether an array is made anew in any case."),
    "correction": ("float", "Another name of `ddof`."),
    "ddof": ("float", "The divisor is the number of elements minus this."),
    "decimals": ("int", "Digits after the point."),
    "dtype": ("dtype", "The dtype of the result; by default NumPy's choice."),
    "initial": ("scalar", "What the elements are added to, or compared with; by default nothing."),
    "keepdims": ("bool", "Whether reduced axes stay, with length 1."),
    "kind": ("str", "The algorithm, as for `numpy.sort`; by default NumPy's choice."),
    "max": ("array_like", "Upper limits; by default none."),
    "mean": ("ndarray", "The mean, where it is known; by default it is computed."),
    "min": ("array_like", "Lower limits; by default none."),
    "options": ("Any", "What else the function of NumPy takes."),
    "order": ("str", 'The order in memory: "C", "F", "A" or "K".'),
    "out": ("ndarray", "The array to fill and return; by default a new one."),
    "repeats": ("int or array_like of int", "How often each element comes."),
    "shape": ("int or tuple of int", "The new shape; one length may be -1."),
    "stable": ("bool", "Whether equal elements keep their order; by default as `kind` says."),
    "subok": ("bool", "As for NumPy, and without effect."),
    "where": ("array_like of bool", "Which elements count."),
}
"""Type and meaning of each parameter."""


def documented(
    returns: str, example: str, result: str, raises: str = "", **parameters: tuple[str, str]
) -> Callable[[F], F]:
    """Return a decorator that adds numpydoc's sections to the summary of a method.

    Parameters
    ----------
    returns : str
        The type of what the method returns.
    example : str
        A call of the method, of a column of 0, 1 and 2.
    result : str
        What is printed for that.
    raises : str, default: ""
        The exceptions that the method itself raises, and when, as in "TypeError: If ..."
    **parameters : tuple of str
        Type and meaning of those that differ from `PARAMETERS`.
    """

    def decorate(method: F) -> F:
        known = PARAMETERS | parameters
        _, *given = inspect.signature(method).parameters.values()
        lines = [inspect.getdoc(method) or ""]
        if given:
            lines += _section("Parameters")
        for each in given:
            kind, meaning = known[each.name]
            name = str(each.replace(annotation=each.empty, default=each.empty))  # with its stars
            lines += [f"{name} : {kind}{_default(each)}", f"    {meaning}"]
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
