"""Spellings of conditions that mean the same, and texts that are refused with their position."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recpipe.data.conditions import check_condition, parse_condition
from recpipe.data.conditions.parser import Column, Comparison, Constant


@pytest.mark.parametrize(
    ("sql", "python"),
    [
        ("a = 4", "a == 4"),
        ("a <> 4", "a != 4"),
        ("a = 1 AND b = 2 OR NOT c", "a == 1 and b == 2 or not c"),
        ("a Not In (1, 2)", "a not in [1, 2]"),
        ("a in (1)", "a in [1,]"),
        ("a IS NOT NULL", "a is not None"),
        ("a = 'it''s'", 'a == "it\'s"'),
        ('a = "say ""yes"""', "a == 'say \"yes\"'"),
        ("a = 'AND = <> OR'", r"a == 'AND = \x3c\u003E OR'"),
        ("`a` >= 1_000", "(a) >= (1000)"),
        ("1 < a < 3", "1 < a and a < 3"),
        ("a = 1\n  or b = 2", "(a = 1) or (b = 2)"),
    ],
)
def test_sql_and_python_spellings_mean_the_same(sql: str, python: str) -> None:
    assert _shape(sql) == _shape(python)


def _shape(text: str) -> str:
    """Tree without positions."""

    def shape(node: object) -> object:
        if isinstance(node, tuple):
            return [shape(part) for part in node]
        fields = getattr(node, "__dict__", None)
        if fields is None:
            return node
        return [type(node).__name__, *(shape(value) for name, value in fields.items() if name != "place")]

    return repr(shape(parse_condition(text).root))


@given(st.text(st.characters(exclude_characters="\0\n", exclude_categories=("Cs",)), max_size=20))
def test_every_text_can_be_compared_with(text: str) -> None:
    for mark in "'\"":
        quoted = text.replace("\\", "\\\\").replace(mark, mark * 2)
        assert parse_condition(f"a = {mark}{quoted}{mark}").root == Comparison(
            0, "==", Column(0, "a"), Constant(4, text)
        )


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("rating >=", "position 10, '': cannot be read"),
        ("__import__('os').system('ls')", "position 17"),
        ("open(paid)", "position 5, .*`and` or `or` is expected"),
        ("rating.real > 1", "position 7, '.real"),
        ("paid.__class__", "position 5"),
        ("[x for x in rating]", "position 1"),
        ("lambda: 1", "position 7"),
        ("rating + 1 > 3", "position 8.*arithmetic"),
        ("rating > 3 # and paid", "position 12.*comment is not allowed"),
        ("rating > 3 -- and paid", "position 12.*`and` or `or`"),
        ("rating > 3; drop table log", "position 11.*one condition"),
        ("paid & event == 'view'", "position 6.*write `and`"),
        ("event in ['a' 'b']", "position 15.*a comma or ] is expected"),
        ("event == 'view", "position 10.*no end"),
        ("price BETWEEN 1 and 2", "position 7.*two comparisons, as in 1 <= price <= 2"),
        ("event like '%view%'", "position 7.*as a whole"),
        ("event in []", "at least one value"),
        ("event not 'view'", "`in` is expected"),
        ("(a == b) == c", "position 2.*belongs here"),
        ("f'{paid}' == 'x'", "position 2.*`and` or `or`"),
        ("rating == 1__0", "no number"),
        ("rating == " + "9" * 10_000, "that large"),
        ("rating == " + "9" * 20, "that large"),
        ("event == 'a\0'", "null byte"),
        ("paid\0", "null byte"),
        ("event == '\ud800'", "half a character"),
        (r"event == '\x00'", "null byte"),
        ("(" * 500 + "paid" + ")" * 500, "nested too deeply"),
        ("not " * 200 + "paid", "more than 100 comparisons"),
        (" and ".join(["paid"] * 3000), "more than 100 comparisons"),
        ("1" + " < paid" * 200, "more than 100 comparisons"),
        ("paid == '" + "x" * 100_001 + "'", "100,011 characters; 100,000 are allowed"),
        ("'" + "''" * 49_000, "no end"),
        ("", "cannot be read"),
    ],
)
def test_a_text_that_is_no_condition_is_refused_with_its_place(condition: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_condition(condition)
    assert type(error.value) is ValueError
    assert len(str(error.value)) < 800


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "a",
                "1",
                "'x'",
                "(",
                ")",
                "[",
                "]",
                ",",
                "=",
                "not",
                "and",
                "or",
                "in",
                "is",
                "null",
                "-",
                "<",
                "`b`",
                '"',
            ]
        )
    ).map(" ".join)
)
def test_any_text_is_parsed_or_refused_by_a_value_error(text: str) -> None:
    try:
        parse_condition(text)
    except ValueError as error:
        assert "condition" in str(error)
