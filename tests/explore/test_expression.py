"""Expressions: the grammar, values against Python row by row, missing values, errors."""

from __future__ import annotations

import datetime
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream
from npstream.errors import ColumnError
from npstream.explore.expression import parse

ROWS = {
    "a": [3, -1, 0, 7, 2, 100],
    "b": [0.5, -2.5, 0.0, 3.25, 2.0, 7.0],
    "t": ["x", "", "grün", "zebra", "cat", "concatenate"],
    "f": [True, False, True, True, False, False],
}
ARRAYS = {
    "a": np.array(ROWS["a"], np.int16),
    "b": np.array(ROWS["b"]),
    "t": np.array(ROWS["t"], np.dtypes.StringDType()),
    "f": np.array(ROWS["f"]),
}


def python_rows(text, rows):
    """Evaluate an expression with Python, row by row."""
    code = compile(text, "expression", "eval")
    count = len(next(iter(rows.values())))
    return [
        bool(eval(code, {"len": len}, {name: values[k] for name, values in rows.items()}))
        for k in range(count)
    ]


numbers = st.recursive(
    st.sampled_from(["a", "b", "len(t)", "f", "1", "2.5", "0", "-3", "0x10", "1e2", "1_000"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(" ".join),
        inner.map("-({})".format),
        inner.map("+{}".format),
        inner.map("({} + 200) // 7".format),
        inner.map("({}) % 5".format),
        inner.map("({}) / 4".format),
        st.sampled_from(["a", "f", "len(t)"]).map("-{} ** 2".format),
    ),
    max_leaves=4,
)
texts = st.sampled_from(["t", "'cat'", '"grün"', "t + 'x'", "'\\x63at'", "''"])
comparisons = ["==", "!=", "<", "<=", ">", ">="]
conditions = st.recursive(
    st.one_of(
        st.tuples(numbers, st.sampled_from(comparisons), numbers).map(" ".join),
        st.tuples(texts, st.sampled_from(comparisons), texts).map(" ".join),
        st.tuples(numbers, st.sampled_from(comparisons), numbers, st.just("<"), numbers).map(
            " ".join
        ),
        st.tuples(texts, st.sampled_from(["in", "not in"]), texts).map(" ".join),
        st.sampled_from(
            ["f", "True", "a in [3, 7.0, True]", "t not in ('x', 'cat')", "b in []", "t in ['',]"]
        ),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map("not ({})".format),
        inner.map("({})".format),
        inner.map("({}) == f".format),
    ),
    max_leaves=5,
)


@given(conditions)
@settings(max_examples=300, deadline=None)
def test_same_as_python_on_each_row(condition):
    text = f"({condition}) and a == a"  # an expression must name a column
    assert parse(text).evaluate(ARRAYS).tolist() == python_rows(text, ROWS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a == 3 or b > 3 and f", [0, 3]),
        ("not a == 3 and not f", [1, 4, 5]),
        ("0 < a <= 3 < 50", [0, 4]),
        ("2 ** 3 ** 2 == a + 512 - 3", [0]),
        ("-a ** 2 == -9", [0]),
        ("a ** -1 == 0.5", [4]),
        ("`a` == 0x3", [0]),
        ("'cat' in t", [4, 5]),
        ("t in 'a cat'", [1, 4]),
        ('t != "zebra" and len(t) > 4', [5]),
        ("f == 1", [0, 2, 3]),
        ("a != 0 and 6 // a == 3", [4]),
        ("a == 0 or 6 % a == 0", [0, 1, 2, 4]),
        # Lists of more than 8 values are compared by `numpy.isin`.
        ("a in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", [0, 2, 3, 4]),
        ("t in ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'cat', 'x']", [0, 4]),
        ("b in [0, 0.5, 2, 3, 4, 5, 6, 7, 8, 9]", [0, 2, 4, 5]),
    ],
)
def test_conditions_select_the_expected_rows(text, expected):
    assert np.flatnonzero(parse(text).evaluate(ARRAYS)).tolist() == expected


def test_integers_do_not_wrap_around():
    arrays = {"x": np.array([100, 200], np.uint8), "y": np.array([2**62, 1])}
    assert parse("x + 100 > 255").evaluate(arrays).tolist() == [False, True]
    assert parse("x - 150 < 0").evaluate(arrays).tolist() == [True, False]
    assert parse("x < 10 ** 30").evaluate(arrays).tolist() == [True, True]
    for text in ("y * 2 > 0", "y + y > 0", "x ** 20 > 0", "y * 10 ** 30 > 0", "u + 1 > 0"):
        with pytest.raises(OverflowError, match=r"character 3: .*int64|large"):
            parse(text).evaluate({**arrays, "u": np.array([1, 2**63], np.uint64)})
    assert parse("1.0 * y * 2 > 0").evaluate(arrays).all()
    with pytest.raises(ZeroDivisionError, match="character 3: // divides an integer by zero"):
        parse("1 // x == 0 and x").evaluate({"x": np.array([1, 0])})
    with pytest.raises(OverflowError, match="too large"):
        parse("x == 9 ** 9 ** 9").evaluate(arrays)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 3", "character 3: '=' is not allowed: write == to compare"),
        ("a == 1 & b", "character 8: '&' is not allowed: write and"),
        ("json.label == 3", "character 5: .* backquotes, as `json.label`"),
        ("len(a", "character 6: the expression ends here: expected '\\)'"),
        ("abs(a) > 1", "character 1: abs\\(\\) is not allowed: the only function is len"),
        ("__import__('os')", "character 1: __import__\\(\\) is not allowed"),
        ("a[0] == 1", "character 2: columns are not indexed"),
        ("a b", "character 3: unexpected 'b': expected an operator"),
        ("", "the expression ends here: expected a column or a value"),
        ("3x == a", "'3x' is not a number"),
        ("a is 3", "character 6: is needs None"),
        ("a == [1]", "character 6: a list is allowed only"),
        ("[1] + a == 2", "character 1: a list is allowed only"),
        ("a in [b]", "character 7: a list holds numbers and texts"),
        ("a in [1] in [2]", "no comparison can follow a list"),
        ("'abc", "the text has no closing quote"),
        ("t == '\\q'", "character 7: unknown escape"),
        ("(" * 60 + "a", "more than 50 levels deep"),
        ("-" * 60 + "a", "more than 50 levels deep"),
        ("lambda: 1", "character 7: ':' is not allowed"),
        ("1 == 1", "names no column"),
        ("a == 1 == ", "the expression ends here"),
        ("`a == 1", "no closing backquote"),
    ],
)
def test_a_text_outside_the_grammar_raises_with_its_position(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@given(st.text(st.sampled_from(list("ab1 ()[]'\"`.,=<>!+-*/%&andornotinislen"))))
def test_any_text_parses_or_raises_value_error(text):
    with suppress(ValueError):
        parse(text)


def test_long_chains_need_no_deep_stack():
    assert parse("a" + " + a" * 5000 + " == 0").evaluate({"a": [0, 1]}).tolist() == [True, False]
    assert parse("a == 1" + " or a == 1" * 5000).evaluate({"a": [0, 1]}).tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("a == 'x'", TypeError, "column 'a' \\(number\\) is compared to 'x' \\(text\\)"),
        ("t < 3", TypeError, "which it never equals"),
        ("t in [1]", TypeError, "which it never equals"),
        ("a", TypeError, "is not True or False: compare it, as with a != 0"),
        ("not t", TypeError, "is not True or False"),
        ("a + 1", TypeError, "is not True or False"),
        ("t * 2 == 'xx'", TypeError, "\\* takes numbers"),
        ("len(a) == 1", TypeError, "has no len"),
        ("m == 1", TypeError, "several numbers in each row"),
        ("a < None", TypeError, "write is None"),
        ("a in b", TypeError, "in needs a list"),
        ("d > 'soon'", ValueError, "'soon' is not a date, such as '2026-01-31'"),
        ("d > ''", ValueError, "is not a date"),
        ("d > '2026-01-31T00:00Z'", ValueError, "without a time zone"),
    ],
)
def test_values_that_do_not_fit_raise(text, kind, message):
    arrays = {**ARRAYS, "m": np.ones((6, 2)), "d": np.zeros(6, "M8[s]")}
    with pytest.raises(kind, match=message):
        parse(text).evaluate(arrays)


def test_unknown_columns_and_columns_of_different_lengths_raise():
    with pytest.raises(ColumnError, match="'labl == 3': no column 'labl'; did you mean 'label'"):
        parse("labl == 3").evaluate({"label": [3]})
    with pytest.raises(ColumnError, match="did you mean 'label'"):
        parse("labl == 3").check(["text", "label"])
    with pytest.raises(ValueError, match=r"columns differ in length: {'a': 1, 'b': 2}"):
        parse("a == b").evaluate({"a": [1], "b": [1, 2]})


def test_times_are_compared_to_text():
    days = np.array(["2026-01-30", "2026-01-31", "2026-02-01"], "M8[D]")
    assert parse("'2026-01-31' <= d < '2026-02'").evaluate({"d": days}).tolist() == [
        False, True, False,
    ]  # fmt: skip
    assert parse("d - e == e - e").evaluate({"d": days, "e": days[::-1]}).tolist() == [
        False, True, False,
    ]  # fmt: skip


MISSING = [
    [1, None, 3],
    np.ma.array([1, 0, 3], mask=[0, 1, 0]),
    np.array([1, None, 3], object),
]


@pytest.mark.parametrize("values", MISSING, ids=lambda values: type(values).__name__)
def test_a_missing_value_equals_nothing(values):
    def rows(text):
        return np.flatnonzero(parse(text).evaluate({"x": values})).tolist()

    assert rows("x is None") == rows("x == None") == rows("not x is not None") == [1]
    assert rows("x is not None") == rows("x != None") == [0, 2]
    assert rows("x > 0") == rows("x + 1 > 0") == rows("x == x") == [0, 2]
    assert rows("x != 1") == rows("not x == 1") == rows("x not in [1]") == [1, 2]
    assert rows("x in [3, None]") == [1, 2]
    assert rows("x is None or x == 3") == [1, 2]


def test_missing_texts_and_lists_equal_nothing():
    arrays = {"t": ["a", None, "ccc"], "l": [[1], None, [1, 2]], "n": [None, None, None]}
    assert parse("len(t) > 0").evaluate(arrays).tolist() == [True, False, True]
    assert parse("t + 'x' != 'ax'").evaluate(arrays).tolist() == [False, True, True]
    assert parse("'c' not in t").evaluate(arrays).tolist() == [True, True, False]
    assert parse("l is not None and len(l) > 1").evaluate(arrays).tolist() == [False, False, True]
    assert parse("n is None").evaluate(arrays).all()
    assert parse("n == 1").evaluate(arrays).tolist() == [False] * 3


def test_lists_of_arrays_have_lengths_only():
    arrays = {"a": [np.arange(1), None, np.arange(3)], "b": [np.arange(2)] * 3}
    assert parse("len(a) == 3 and len(b) == 2").evaluate(arrays).tolist() == [False, False, True]
    with pytest.raises(TypeError, match="several numbers in each row"):
        parse("a == 0").evaluate(arrays)


def test_objects_are_compared_with_their_own_operators():
    arrays = {"x": np.array([1, "a", (1, 2)], object)}
    assert parse("x == 1").evaluate(arrays).tolist() == [True, False, False]
    assert parse("x in ['a', 1]").evaluate(arrays).tolist() == [True, True, False]
    with pytest.raises(TypeError, match=r"character 5: .*not supported between"):
        parse("x < 1").evaluate(arrays)


def test_arrow_arrays_are_compared():
    pa = pytest.importorskip("pyarrow")
    time = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "n": pa.array([1, None, 3], pa.int8()),
            "t": pa.array(["é", "bb", None]),
            "c": pa.array(["x", None, "y"]).dictionary_encode(),
            "l": pa.array([[1], [], None], pa.list_(pa.int32())),
            "s": pa.array([["a"], ["b", "c"], None]),
            "z": pa.array([time, None, time], pa.timestamp("us", "Europe/Berlin")),
            "f": pa.array([True, None, False]),
            "o": pa.nulls(3),
        }
    )

    def rows(text, table=table):
        arrays = dict(zip(table.column_names, table.columns, strict=True))
        return np.flatnonzero(parse(text).evaluate(arrays)).tolist()

    assert rows("n + 127 > 128") == [2]
    assert rows("len(t) == 1 and t == 'é'") == [0]
    assert rows("c in ['x', 'z']") == rows("len(l) == 1") == rows("len(s) == 1") == [0]
    assert rows("len(l) == 0 or len(s) > 1") == [1]
    assert rows("z == '2026-01-31T12:00'") == [0, 2]
    assert rows("f") == [0]
    assert rows("not f") == [1, 2]
    assert rows("o is None") == [0, 1, 2]
    assert rows("len(l) == 0", table.slice(1)) == [0]


@pytest.fixture
def lazy(tmp_path):
    npstream.write(
        tmp_path / "data",
        [
            {
                "label": k, "text": "ä" * k, "tokens": np.arange(k + 1, dtype=np.int32),
                "raw": b"x" * k, "grid": np.zeros((k + 1, 2)),
                "meta": {"a": k} if k else None,
            }
            for k in range(6)
        ],
        columns={
            "label": "uint8", "text": "str", "tokens": "ndarray:int32", "raw": "bytes",
            "grid": "ndarray:float64", "meta": "json",
        },
    )  # fmt: skip
    return npstream.open(tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label == 3 or text == 'ä'", [1, 3]),
        ("label + 253 > 256", [4, 5]),
        ("label in [1, 2]", [1, 2]),
        ("text in ['', 'ä']", [0, 1]),
        ("text > 'ää'", [3, 4, 5]),
        ("len(text) == 2 and label == 2", [2]),
        ("len(tokens) > 5 or len(grid) == 1", [0, 5]),
        ("len(raw) < 2", [0, 1]),
        ("meta is None", [0]),
        ("label is None", []),
        ("meta is not None and len(meta) == 1 and 1 < label < 3", [2]),
    ],
)
def test_lazy_columns_are_compared(lazy, text, expected):
    assert np.flatnonzero(parse(text).evaluate(lazy)).tolist() == expected


def test_lazy_columns_refuse_what_arrays_refuse(lazy):
    with pytest.raises(TypeError, match="several numbers in each row"):
        parse("tokens == 3").evaluate(lazy)
    with pytest.raises(TypeError, match="which it never equals"):
        parse("text == 3").evaluate(lazy)
    with pytest.raises(ColumnError, match="did you mean 'label'"):
        parse("labels == 3").evaluate(lazy)


def test_and_reads_its_right_operand_only_for_rows_where_the_left_is_true(lazy):
    class Counted:
        """A lazy column that records the lengths of the texts read; text k has length k."""

        def __init__(self, column, read):
            self.column, self.read = column, read
            self.dtype, self.ndim = column.dtype, 1

        def __len__(self):
            return len(self.column)

        def __getitem__(self, rows):
            return Counted(self.column[rows], self.read)

        def load(self):
            values = self.column.load()
            self.read.extend(map(len, values))
            return values

    read = []
    arrays = {"label": lazy["label"], "text": Counted(lazy["text"], read)}
    assert parse("label > 3 and len(text) == 5").evaluate(arrays).tolist() == [False] * 5 + [True]
    assert read == [4, 5]


def test_an_expression_of_no_rows_gives_no_values():
    arrays = {"x": np.empty(0, np.int64), "t": np.empty(0, np.dtypes.StringDType())}
    assert parse("x // 1 == 1 and len(t) > 2 and t in ['a']").evaluate(arrays).shape == (0,)


def test_nuls_at_the_end_of_text_are_compared_as_in_python(tmp_path):
    rows = {
        "t": ["\0", "a", "a\0", "", "\0\0", "a\0b"],
        "part": ["\0", "a\0", "", "b", "\0", "\0b"],
    }
    npstream.write(tmp_path, rows)
    ds = npstream.open(tmp_path)
    arrays = {name: np.array(values, np.dtypes.StringDType()) for name, values in rows.items()}
    for text in (
        r"t == 'a\0'", r"t > 'a\0'", r"t <= '\0'", r"'\0' <= t", r"'\0' in t", r"'a\0' not in t",
        "part in t", r"t + '\0' == 'a\0'", r"'\0' + t >= '\0\0'", "t < part",
    ):  # fmt: skip
        expected = python_rows(text, rows)
        assert parse(text).evaluate(arrays).tolist() == expected
        assert np.array_equal(ds.query(text)["t"].load(), arrays["t"][expected])


def test_numbers_that_are_stored_as_text(tmp_path):
    rows = {"n": [-3, 0, 12, 2**62], "x": [0.5, -1.0, 12.0, 2.0]}
    arrays = rows | {"ragged": [np.arange(1 + k) for k in range(4)]}
    columns = {"n": "str_int", "x": "str_float", "ragged": "ndarray:int64"}
    npstream.write(tmp_path, arrays, columns=columns)
    ds = npstream.open(tmp_path)
    for text in ("n == -3", "n in [0, 12]", "x > 1 and n == x", "-n < 0", "n is None"):
        assert (
            ds.query(text).load().ids.tolist() == np.flatnonzero(python_rows(text, rows)).tolist()
        )
    with pytest.raises(TypeError, match=r"column 'ragged' \(array\) has several numbers"):
        ds.query("ragged == 1")
