"""The grammar of expressions: tokens, a parser, and the tree that it returns.

The grammar is a part of Python's, with its precedence. It has comparisons, ``and``, ``or``,
``not``, arithmetic, literals and ``len``, but no other calls, no attributes and no indexing.
Nothing of an expression is compiled or run as code.

Tested in tests/explore/test_expression.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Arithmetic", "Comparison", "Length", "Literal", "LiteralList", "Logic", "Name", "Node", "Not",
    "Sign", "add_position", "parse_tree",
]  # fmt: skip

MAX_DEPTH = 50
"""Maximum nesting of parentheses and prefix operators, for which the parser calls itself."""

ALLOWED = (
    "an expression has names of columns, numbers, 'text', True, False, None, == != < <= > >=, "
    "in, not in, is None, and, or, not, + - * / // % **, len(column), ( ) and [ ]"
)

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>0[xX][0-9a-fA-F_]+|(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<quoted>`(?:[^`]|``)+`)
    |(?P<word>[^\W\d]\w*)
    |(?P<symbol>\*\*|//|==|!=|<=|>=|[-+*/%<>()\[\],])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"', "0": "\0"}
_KEYWORDS = frozenset(["and", "or", "not", "in", "is", "True", "False", "None"])
_CONSTANTS = {"True": True, "False": False, "None": None}
_COMPARISONS = frozenset(["==", "!=", "<", "<=", ">", ">="])

_HINTS = {
    "=": "write == to compare",
    "&": "write and",
    "|": "write or",
    "!": "write not, or != to compare",
    "~": "write not",
    ".": "a column whose name has a dot is written in backquotes, as `json.label`",
    "'": "the text has no closing quote",
    '"': "the text has no closing quote",
    "`": "the name has no closing backquote",
    "{": "a list of values is written in brackets, as in [1, 2]",
    ";": "an expression is a single condition: join conditions with and, or",
}


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, text, True, False or None; `position` is its first character."""

    value: Any
    position: int


@dataclass(frozen=True, slots=True)
class LiteralList:
    """The literals on the right of ``in``."""

    values: tuple[Any, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Name:
    """A column."""

    name: str
    position: int


@dataclass(frozen=True, slots=True)
class Length:
    """The function ``len``."""

    operand: Node
    position: int


@dataclass(frozen=True, slots=True)
class Sign:
    """A unary minus or plus."""

    symbol: str
    operand: Node
    position: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Operators of one precedence, applied from left to right to `first`.

    `steps` holds an operator, its right operand and the operator's position for each step. A chain
    is one node, so that a long chain does not need a deep tree.
    """

    first: Node
    steps: tuple[tuple[str, Node, int], ...]
    position: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A chain such as ``0 < x <= 5``; an operator can be ``in`` or ``is``, also with ``not``.

    `steps` holds an operator, its right operand and the position of this operand for each step.
    """

    first: Node
    steps: tuple[tuple[str, Node, int], ...]
    position: int


@dataclass(frozen=True, slots=True)
class Not:
    """The operator ``not``."""

    operand: Node
    position: int


@dataclass(frozen=True, slots=True)
class Logic:
    """Operands that are all joined by ``and``, or all by ``or``."""

    operator: str
    operands: tuple[Node, ...]
    position: int


Node: TypeAlias = (
    Literal | LiteralList | Name | Length | Sign | Arithmetic | Comparison | Not | Logic
)


def add_position(text: str, position: int, message: str) -> str:
    """Return a message that begins with the expression and the position of the error in it."""
    shown = text if len(text) <= 80 else f"{text[max(position - 40, 0) : position + 40]}..."
    return f"{shown!r}, character {position + 1}: {message}"


def parse_tree(text: str) -> Node:
    """Return the tree of an expression; raise ValueError if it does not follow the grammar."""
    parser = _Parser(text)
    tree = parser.disjunction()
    if parser.kind != "end":
        raise parser.unexpected()
    return tree


class _Parser:
    """A recursive descent parser that holds one token: its kind, its text and its position."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._end = 0
        self._depth = 0
        self.kind = self.token = ""
        self.position = 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self.text, self._end)
        if match is None:
            remaining = self.text[self._end :]
            self.position = self._end + len(remaining) - len(remaining.lstrip())
            self.kind, self.token = "end", ""
            if self.position < len(self.text):
                self.token = self.text[self.position]
                raise self._unknown_character()
            return
        self.kind = str(match.lastgroup)
        self.token = match[self.kind]
        self.position, self._end = match.start(self.kind), match.end()
        next_character = self.text[self._end : self._end + 1]
        if self.kind == "number" and (next_character.isalnum() or next_character in tuple("_.")):
            raise self.error(f"{self.token + next_character!r} is not a number")

    def error(self, message: str, position: int | None = None) -> ValueError:
        """Return an error at the current token, or at a position."""
        if position is None:
            position = self.position
        return ValueError(add_position(self.text, position, message))

    def _unknown_character(self) -> ValueError:
        hint = _HINTS.get(self.token)
        return self.error(f"{self.token!r} is not allowed: {hint or ALLOWED}")

    def unexpected(self, expected: str = "") -> ValueError:
        """Return an error that says which token is unexpected, and what is expected."""
        problem = f"unexpected {self.token!r}" if self.token else "the expression ends here"
        if self.kind in ("word", "number", "quoted", "text") and not expected:
            expected = "an operator, such as == or and"
        return self.error(f"{problem}: " + (f"expected {expected}; " if expected else "") + ALLOWED)

    def _is(self, *tokens: str) -> bool:
        return self.kind in ("symbol", "word") and self.token in tokens

    def _take(self) -> tuple[str, int]:
        token, position = self.token, self.position
        self._advance()
        return token, position

    def _expect(self, symbol: str) -> None:
        if not self._is(symbol):
            raise self.unexpected(repr(symbol))
        self._advance()

    def _parse_nested(self, parse: Callable[[], Node]) -> Node:
        """Call a method that can call itself; raise if calls nest deeper than `MAX_DEPTH`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.error(f"the expression is nested more than {MAX_DEPTH} levels deep")
        node = parse()
        self._depth -= 1
        return node

    def disjunction(self) -> Node:
        """Parse operands of ``or``."""
        return self._parse_nested(
            lambda: self._logic("or", lambda: self._logic("and", self._negation))
        )

    def _logic(self, operator: str, parse: Callable[[], Node]) -> Node:
        position = self.position
        operands = [parse()]
        while self._is(operator):
            self._advance()
            operands.append(parse())
        return operands[0] if len(operands) == 1 else Logic(operator, tuple(operands), position)

    def _negation(self) -> Node:
        if self._is("not"):
            position = self._take()[1]
            return Not(self._parse_nested(self._negation), position)
        return self._comparison()

    def _comparison(self) -> Node:
        position = self.position
        first = self._sum()
        steps: list[tuple[str, Node, int]] = []
        while (operator := self._comparison_operator()) is not None:
            operand_position = self.position
            if steps and isinstance(steps[-1][1], LiteralList):
                raise self.error("no comparison can follow a list: join conditions with and")
            operand = self._sum()
            if operator in ("is", "is not") and not (
                isinstance(operand, Literal) and operand.value is None
            ):
                raise self.error(
                    f"{operator} needs None on its right; compare with ==", operand_position
                )
            if operator not in ("in", "not in"):
                self._refuse_list(operand)
            steps.append((operator, operand, operand_position))
        self._refuse_list(first)
        return Comparison(first, tuple(steps), position) if steps else first

    def _comparison_operator(self) -> str | None:
        if self._is(*_COMPARISONS):
            return self._take()[0]
        if self._is("in"):
            return self._take()[0]
        if self._is("not"):
            self._advance()
            self._expect("in")
            return "not in"
        if self._is("is"):
            self._advance()
            if not self._is("not"):
                return "is"
            self._advance()
            return "is not"
        return None

    def _sum(self) -> Node:
        return self._chain(("+", "-"), lambda: self._chain(("*", "/", "//", "%"), self._factor))

    def _chain(self, symbols: tuple[str, ...], parse: Callable[[], Node]) -> Node:
        position = self.position
        first = parse()
        steps: list[tuple[str, Node, int]] = []
        while self._is(*symbols):
            symbol, symbol_position = self._take()
            steps.append((symbol, parse(), symbol_position))
        if not steps:
            return first
        for node in [first, *(step[1] for step in steps)]:
            self._refuse_list(node)
        return Arithmetic(first, tuple(steps), position)

    def _factor(self) -> Node:
        if not self._is("-", "+"):
            return self._power()
        symbol, position = self._take()
        operand = self._parse_nested(self._factor)
        self._refuse_list(operand)
        value = getattr(operand, "value", None)
        if isinstance(operand, Literal) and type(value) in (int, float):
            return Literal(-value if symbol == "-" else value, position)  # type: ignore[operator]
        return Sign(symbol, operand, position)

    def _power(self) -> Node:
        position = self.position
        base = self._atom()
        if not self._is("**"):
            return base
        symbol_position = self._take()[1]
        exponent = self._parse_nested(self._factor)
        self._refuse_list(base)
        self._refuse_list(exponent)
        return Arithmetic(base, (("**", exponent, symbol_position),), position)

    def _refuse_list(self, node: Node) -> None:
        if isinstance(node, LiteralList):
            raise self.error(
                "a list is allowed only on the right of `in` or `not in`", node.position
            )

    def _atom(self) -> Node:
        kind, position = self.kind, self.position
        if kind == "number":
            return Literal(self._number(self._take()[0], position), position)
        if kind == "text":
            return Literal(self._text(self._take()[0], position), position)
        if kind == "quoted":
            return Name(self._take()[0][1:-1].replace("``", "`"), position)
        if kind == "word" and self.token in _CONSTANTS:
            return Literal(_CONSTANTS[self._take()[0]], position)
        if kind == "word" and self.token not in _KEYWORDS:
            return self._name_or_call()
        if self._is("(", "["):
            return self._group()
        raise self.unexpected("a column or a value")

    def _name_or_call(self) -> Node:
        name, position = self._take()
        if not self._is("("):
            if self._is("["):
                raise self.error(
                    "columns are not indexed: compare whole values, or use map= for other tests"
                )
            return Name(name, position)
        if name != "len":
            raise self.error(
                f"{name}() is not allowed: the only function is len; a column of this name is "
                f"written `{name}`",
                position,
            )
        self._advance()
        operand = self.disjunction()
        self._expect(")")
        return Length(operand, position)

    def _group(self) -> Node:
        opening, position = self._take()
        closing = ")" if opening == "(" else "]"
        if opening == "[" and self._is("]"):
            self._advance()
            return LiteralList((), position)
        items, is_list = [self.disjunction()], opening == "["
        while self._is(","):
            is_list = True
            self._advance()
            if self._is(closing):
                break
            items.append(self.disjunction())
        self._expect(closing)
        if not is_list:
            return items[0]
        values = []
        for item in items:
            if not isinstance(item, Literal):
                raise self.error("a list holds numbers and texts only", item.position)
            values.append(item.value)
        return LiteralList(tuple(values), position)

    def _number(self, token: str, position: int) -> int | float:
        try:
            if token[:2].lower() == "0x":
                return int(token, 16)
            return int(token) if re.fullmatch(r"[\d_]+", token) else float(token)
        except ValueError:
            raise self.error(f"{token[:40]!r} is not a number", position) from None

    def _text(self, token: str, position: int) -> str:
        def replace(match: re.Match[str]) -> str:
            code = match[1]
            if len(code) > 1 and int(code[1:], 16) <= 0x10FFFF:
                return chr(int(code[1:], 16))
            if code in _ESCAPES:
                return _ESCAPES[code]
            raise self.error(
                f"unknown escape {match[0]!r}: write \\\\ for a backslash",
                position + 1 + match.start(),
            )

        return _ESCAPE.sub(replace, token[1:-1])
