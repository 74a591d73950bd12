"""Provide `parse`, which turns a text such as ``label == 3`` into a condition on columns.

An `Expression` is evaluated on whole columns with NumPy. The right operand of ``and`` or ``or``
is evaluated only for the rows whose result the left operand does not decide. So
``x is not None and len(x) > 3`` is safe, and lazy columns read only those rows.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bools, Int64
from npstream.errors import ColumnError
from npstream.explore import syntax
from npstream.explore.operands import Operand, operand_of

if TYPE_CHECKING:
    from npstream.explore.syntax import Node

__all__ = ["Expression", "parse"]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "%": operator.mod, "**": operator.pow,
}  # fmt: skip
_NUMBERS = ("bool", "number")
_MAX_INT = float(1 << 63)
_MAX_BITS = 1024
"""Maximum bits of the result of ``a ** b`` if both are integer literals."""

_MAX_COMPARISONS = 8
"""A longer list of texts or integers after ``in`` is compared with `numpy.isin`."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition on the columns of a dataset or table.

    Made by `parse`.

    Attributes
    ----------
    text : str
    columns : tuple of str
        The names of the columns that it uses, in the order of their first use.
    """

    text: str
    columns: tuple[str, ...]
    _tree: Node = field(repr=False)

    def check(self, names: Any) -> None:
        """Raise ColumnError if a column of the expression is not in `names`."""
        for name in self.columns:
            if name not in names:
                raise ColumnError(name, names, f"{self.text!r}: ")

    def evaluate(self, arrays: Any) -> Bools:
        """Return True for each row for which the expression is true.

        Parameters
        ----------
        arrays : mapping of str to array, or Dataset
            Arrays of NumPy or Arrow, Ragged, lists, or lazy columns, all of one length. None,
            masked values and Arrow's nulls are missing. A missing value equals no other value,
            and is neither less nor greater than any.

        Returns
        -------
        ndarray of bool

        Raises
        ------
        ColumnError
            If `arrays` lacks a column.
        TypeError
            If values of different kinds are compared, or the result is not True or False.
        ValueError
            If the columns differ in length, or a text is not a date.
        ArithmeticError
            If an integer overflows, or is divided by zero.

        Examples
        --------
        >>> parse("len(text) > 3 and label != 2").evaluate(getfixture("example"))
        array([ True, False, False])
        """
        if isinstance(arrays, Mapping):
            self.check(arrays)
        operands = {name: operand_of(arrays[name], f"column {name!r}") for name in self.columns}
        lengths = {name: len(each.data) for name, each in operands.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.text!r}: columns differ in length: {lengths}")
        rows = _Rows(self.text, operands, lengths[self.columns[0]])
        return rows.condition(self._tree)


def parse(text: str) -> Expression:
    """Return a text as an `Expression`.

    Parameters
    ----------
    text : str
        Comparisons of columns, numbers and text in Python's syntax, such as
        ``"lang in ['de', 'fr'] and 100 < len(text) <= 4096"``. Allowed are:

        - ``== != < <= > >=``, and chains of these comparisons
        - ``in`` and ``not in`` with a list or a text, ``is None`` and ``is not None``
        - ``and``, ``or`` and ``not``
        - ``+ - * / // % **``
        - ``len(column)``, parentheses, numbers, texts, True, False and None

        A name that is not an identifier is written in backquotes.

    Returns
    -------
    Expression

    Raises
    ------
    TypeError
        If `text` is not a str.
    ValueError
        If the text names no column, or does not follow the grammar. The message has the position.

    Examples
    --------
    >>> expression = parse("`json.label` == 3 and 0 < score <= 0.5")
    >>> expression.columns
    ('json.label', 'score')
    >>> expression.evaluate({"json.label": [3, 3, 4], "score": [0.5, 0.7, 0.1]})
    array([ True, False, False])
    """
    if not isinstance(text, str):
        raise TypeError(f"an expression is text, such as 'label == 3'; got {text!r}")
    tree = syntax.parse_tree(text)
    columns = tuple(dict.fromkeys(_names(tree)))
    if not columns:
        raise ValueError(f"{text!r} names no column: {syntax.ALLOWED}")
    return Expression(text, columns, tree)


def _names(node: Node) -> Iterator[str]:
    match node:
        case syntax.Name(name):
            yield name
        case syntax.Length(operand) | syntax.Sign(_, operand) | syntax.Not(operand):
            yield from _names(operand)
        case syntax.Arithmetic(first, steps) | syntax.Comparison(first, steps):
            yield from _names(first)
            for _, operand, _ in steps:
                yield from _names(operand)
        case syntax.Logic(_, operands):
            for operand in operands:
                yield from _names(operand)


class _Rows:
    """The rows for which a part of an expression is evaluated."""

    def __init__(self, text: str, operands: Mapping[str, Operand], count: int) -> None:
        self.text = text
        self.operands = operands
        self.count = count

    def error(self, kind: type[Exception], node_position: int, message: str) -> Exception:
        """Return an exception about a character of the expression."""
        return kind(syntax.add_position(self.text, node_position, message))

    def take(self, rows: Int64, node: Node) -> _Rows:
        """Return some of these rows, with the columns that `node` uses."""
        operands = {name: self.operands[name].take(rows) for name in dict.fromkeys(_names(node))}
        return _Rows(self.text, operands, len(rows))

    def condition(self, node: Node) -> Bools:
        """Return whether a node is true for each row."""
        match node:
            case syntax.Logic():
                return self._logic(node)
            case syntax.Not(operand):
                return ~self.condition(operand)
            case syntax.Comparison():
                return self._comparison(node)
        value = self.value(node)
        if value.kind != "bool":
            raise self.error(
                TypeError,
                node.position,
                f"{value.describe()} is not True or False: compare it, as with "
                f"{self._source(node)} != 0",
            )
        values = np.broadcast_to(value.values(), self.count)
        return values & ~value.missing if value.missing is not None else values.copy()

    def _source(self, node: Node) -> str:
        return node.name if isinstance(node, syntax.Name) else "..."

    def _logic(self, node: syntax.Logic) -> Bools:
        first, *others = node.operands
        result = self.condition(first)
        for operand in others:
            rows = np.flatnonzero(result if node.operator == "and" else ~result)
            if len(rows) == self.count:
                result = self.condition(operand)
            elif len(rows):
                result[rows] = self.take(rows, operand).condition(operand)
        return result

    def _comparison(self, node: syntax.Comparison) -> Bools:
        result = np.ones(self.count, bool)
        left, left_node = self.value(node.first), node.first
        for symbol, right_node, position in node.steps:
            if isinstance(right_node, syntax.LiteralList):
                is_in = self._in_list(left, right_node)
                result &= ~is_in if symbol == "not in" else is_in
                break  # nothing follows a list
            right = self.value(right_node)
            if symbol in ("in", "not in"):
                part = self._in_text(left, right, position)
                part = ~part if symbol == "not in" else part
            elif "none" in (left.kind, right.kind):
                part = self._is_missing(left, right, symbol, left_node.position)
            else:
                part = self._compare(symbol, left, right, position)
            result &= part
            left, left_node = right, right_node
        return result

    def _is_missing(self, left: Operand, right: Operand, symbol: str, position: int) -> Bools:
        """Compare a value to None."""
        if symbol not in ("==", "!=", "is", "is not"):
            raise self.error(TypeError, position, "None is neither less nor greater: write is None")
        value = left if right.kind == "none" else right
        # A lazy column does not know its missing values. Only columns of objects have None.
        if value.is_lazy and value.kind == "object":
            value = value.load()
        missing = np.full(self.count, value.kind == "none")
        if value.missing is not None:
            missing = value.missing
        return missing if symbol in ("==", "is") else ~missing

    def _compare(self, symbol: str, left: Operand, right: Operand, position: int) -> Bools:
        left, right = (each.load() if each.kind == "object" else each for each in (left, right))
        left, right = self._comparable(left, right, position)
        missing = _any_missing(left, right)
        try:
            if missing is None:
                return _compare_values(_COMPARE[symbol], left, right, self.count)
            rows = np.flatnonzero(~missing)
            result = np.full(self.count, symbol == "!=")
            result[rows] = _compare_values(
                _COMPARE[symbol], left.take(rows), right.take(rows), len(rows)
            )
            return result
        except TypeError as error:
            raise self.error(
                TypeError, position, f"{left.describe()} and {right.describe()}: {error}"
            ) from None

    def _comparable(self, left: Operand, right: Operand, position: int) -> tuple[Operand, Operand]:
        """Return two operands of one kind; a text that is compared to dates becomes a date."""
        if {left.kind, right.kind} == {"time", "text"}:
            return self._as_time(left, position), self._as_time(right, position)
        kinds = {"number" if each.kind in _NUMBERS else each.kind for each in (left, right)}
        for each in (left, right):
            if each.kind in ("array", "image"):
                raise self.error(
                    TypeError,
                    position,
                    f"{each.describe()} has several numbers in each row, which an expression does "
                    "not compare: use len(), or map= for other tests",
                )
        if len(kinds) > 1 and "object" not in kinds:
            raise self.error(
                TypeError,
                position,
                f"{left.describe()} is compared to {right.describe()}, which it never equals",
            )
        return left, right

    def _as_time(self, value: Operand, position: int) -> Operand:
        if value.kind == "time":
            return value
        if not isinstance(value.data, str):
            raise self.error(TypeError, position, f"{value.describe()} is text, and not a date")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy only warns about a time zone
                time = np.datetime64(value.data)
        except (ValueError, UserWarning, DeprecationWarning):
            time = np.datetime64("NaT")
        if np.isnat(time):
            raise self.error(
                ValueError,
                position,
                f"{value.data!r} is not a date, such as '2026-01-31', or a time without a time "
                "zone, such as '2026-01-31T12:00'",
            )
        return Operand(time, kind="time", name=repr(value.data))

    def _in_list(self, value: Operand, items: syntax.LiteralList) -> Bools:
        """Return whether the value is one of the literals."""
        result = np.zeros(self.count, bool)
        if value.missing is not None and None in items.values:
            result |= value.missing
        literals = [Operand(item) for item in items.values if item is not None]
        for literal in literals:
            self._comparable(value, literal, items.position)
        is_long_text_list = value.kind == "text" and len(literals) > _MAX_COMPARISONS
        if is_long_text_list or (len(literals) > _MAX_COMPARISONS and _are_ints(value, literals)):
            dtype = np.dtypes.StringDType() if is_long_text_list else None
            candidates = np.array([literal.data for literal in literals], dtype)
            is_in = np.isin(np.broadcast_to(value.values(), self.count), candidates)
            return result | (is_in if value.missing is None else is_in & ~value.missing)
        if len(literals) > 1:
            value = value.load()
        for literal in literals:
            result |= self._compare("==", value, literal, items.position)
        return result

    def _in_text(self, part: Operand, text: Operand, position: int) -> Bools:
        """Return whether `text` contains `part`, for each row."""
        if part.kind != "text" or text.kind != "text":
            raise self.error(
                TypeError,
                position,
                f"in needs a list, such as [1, 2], or a text that contains a text; got "
                f"{text.describe()}",
            )
        contains = _contains(text, part, self.count)
        missing = _any_missing(part, text)
        result = np.broadcast_to(contains, self.count).copy()
        return result if missing is None else result & ~missing

    # Values

    def value(self, node: Node) -> Operand:
        """Return the values of a node."""
        match node:
            case syntax.Literal(value):
                return Operand(value)
            case syntax.Name(name):
                return self.operands[name]
            case syntax.Length(operand):
                return self._length(operand)
            case syntax.Sign(symbol, operand, position):
                zero, value = Operand(0), self.value(operand)
                return self._arithmetic("+" if symbol == "+" else "-", zero, value, position)
            case syntax.Arithmetic(first, steps):
                value = self.value(first)
                for symbol, operand, position in steps:
                    value = self._arithmetic(symbol, value, self.value(operand), position)
                return value
        return Operand(self.condition(node))

    def _length(self, node: Node) -> Operand:
        value = self.value(node)
        lengths = value.lengths()
        if lengths is None:
            raise self.error(
                TypeError,
                node.position,
                f"{value.describe()} has no len(): it is for text, bytes, arrays and lists",
            )
        return Operand(lengths, value.missing, name="len()")

    def _arithmetic(self, symbol: str, left: Operand, right: Operand, position: int) -> Operand:
        kinds = {left.kind, right.kind}
        if kinds <= set(_NUMBERS):
            compute = _compute_numbers
        elif kinds == {"text"} and symbol == "+":
            compute = _join_texts
        elif kinds <= {"time", "duration"} and symbol in "+-":
            compute = _compute_times
        else:
            operands = f"{left.describe()} and {right.describe()}"
            raise self.error(TypeError, position, f"{symbol} takes numbers, and got {operands}")
        missing = _any_missing(left, right)
        try:
            if missing is None:
                return Operand(compute(symbol, left.values(), right.values()), name=symbol)
            rows = np.flatnonzero(~missing)
            part = compute(symbol, left.take(rows).values(), right.take(rows).values())
        except (ArithmeticError, TypeError) as error:
            raise self.error(type(error), position, str(error)) from None
        whole = np.zeros(self.count, part.dtype)
        whole[rows] = part
        return Operand(whole, missing, name=symbol)


def _any_missing(left: Operand, right: Operand) -> Bools | None:
    """Return the rows in which one of two operands is missing; None if there are none."""
    if left.missing is None or right.missing is None:
        return left.missing if right.missing is None else right.missing
    return left.missing | right.missing


def _are_ints(value: Operand, literals: list[Operand]) -> bool:
    """Return True if `numpy.isin` compares without a conversion to floats."""
    dtype = getattr(value.data, "dtype", np.dtype(object))
    return dtype.kind in "iu" and all(
        type(literal.data) is int and np.iinfo(dtype).min <= literal.data <= np.iinfo(dtype).max
        for literal in literals
    )


def _text_array(operand: Operand) -> Any:
    return np.asarray(operand.values(), np.dtypes.StringDType())


def _compare_values(
    compare: Callable[[Any, Any], Any], left: Operand, right: Operand, count: int
) -> Bools:
    """Compare two operands without missing values."""
    if left.kind == "object" or right.kind == "object":
        pairs = zip(_objects(left, count), _objects(right, count), strict=True)
        return np.fromiter((bool(compare(a, b)) for a, b in pairs), bool, count)
    # A lazy column compares itself to a scalar. It tests text for equality without decoding it. The
    # order of text needs decoded values.
    is_direct = (left.is_lazy and right.is_scalar) or (right.is_lazy and left.is_scalar)
    is_text_order = left.kind == "text" and compare not in (operator.eq, operator.ne)
    if is_direct and not is_text_order:
        return np.asarray(compare(left.data, right.data), bool)
    if left.kind == right.kind == "text":  # NumPy drops NULs at the end of a str operand
        values = compare(_text_array(left), _text_array(right))
    else:
        values = compare(left.values(), right.values())
    return np.broadcast_to(np.asarray(values, bool), count).copy()


def _contains(text: Operand, part: Operand, count: int) -> Bools:
    """Return whether `text` contains `part`, for each row."""
    literals = [part.data] if part.is_scalar else part.values()
    # `numpy.strings.find` ignores NULs at the end of the part.
    if any(literal.endswith("\0") for literal in literals):
        pairs = zip(_objects(text, count), _objects(part, count), strict=True)
        return np.fromiter((part in text for text, part in pairs), bool, count)
    return np.asarray(np.strings.find(_text_array(text), _text_array(part)) >= 0)


def _objects(operand: Operand, count: int) -> Any:
    values = operand.values()
    return [values] * count if operand.is_scalar else values


def _join_texts(symbol: str, left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    text = np.dtypes.StringDType()
    return np.add(np.asarray(left, text), np.asarray(right, text))


def _compute_times(symbol: str, left: Any, right: Any) -> Any:
    return _ARITHMETIC[symbol](left, right)


def _compute_numbers(symbol: str, left: Any, right: Any) -> Any:
    """Apply an operator to numbers; raise OverflowError instead of a wrong integer."""
    compute = _ARITHMETIC[symbol]
    is_scalar = not isinstance(left, np.ndarray) and not isinstance(right, np.ndarray)
    if is_scalar:
        is_int = isinstance(left, int) and isinstance(right, int)
        if symbol == "**" and is_int and left and abs(right) * left.bit_length() > _MAX_BITS:
            raise OverflowError(f"{left} ** {right} is too large: write a float")
        return compute(left, right)
    is_int = all(getattr(x, "dtype", np.asarray(x).dtype).kind in "biu" for x in (left, right))
    with np.errstate(all="ignore"):
        if not is_int or symbol == "/":
            return compute(left, right)
        left, right = _as_int64(left), _as_int64(right)
        if symbol in ("//", "%") and np.any(right == 0):
            raise ZeroDivisionError(
                f"{symbol} divides an integer by zero: test the divisor first, as in x != 0 and ..."
            )
        if symbol == "**" and np.any(right < 0):
            return compute(left.astype(np.float64), right)
        estimate = compute(np.asarray(left, np.float64), np.asarray(right, np.float64))
        if np.any(np.abs(estimate) >= _MAX_INT):
            raise OverflowError(
                f"a result of {symbol} exceeds int64: multiply an operand by 1.0 before, to "
                "compute in float64"
            )
        return compute(left, right)


def _as_int64(values: Any) -> Any:
    """Return integers or bools as int64; raise OverflowError for larger ones."""
    array = np.asarray(values)
    too_large = array.dtype.kind not in "biu" or (
        array.dtype == np.uint64 and array.size and int(array.max()) >= 1 << 63
    )
    if too_large:
        raise OverflowError(
            "an operand exceeds int64: multiply it by 1.0 before, to compute in float64"
        )
    return array.astype(np.int64)
