"""Texts from columns: what is joined, what is cleaned, what is refused."""

from __future__ import annotations

import logging

import pyarrow as pa
import pytest

from recpipe.content.item_texts import extra, texts


def items(**columns: list) -> pa.Table:
    n = len(next(iter(columns.values())))
    return pa.table({"item_id": [f"i{i}" for i in range(n)], **columns})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (None, None),
        ("", None),
        (" \t\n\u00a0\u3000", None),
        ("a \n\t b\u00a0c", "a b c"),
        ("Tom &amp; Jerry&#39;s &eacute;", "Tom & Jerry's é"),
        ("<b>bold</b><br/>next<p class='x'>line</p>", "bold next line"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("a<script>alert('x')</script>b<!-- hidden -->c", "a b c"),
        ("1 < 2 > 0, I <3 you", "1 < 2 > 0, I <3 you"),
        ("e\u0301", "é"),
        ("漢字 кириллица العربية", "漢字 кириллица العربية"),
        ("nul\x00\x1b", "nul"),
    ],
)
def test_a_string_is_cleaned(value: str | None, text: str | None) -> None:
    assert texts(items(c=pa.array([value], pa.string())), "{c}") == [text]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([5.0, 0.25, None, float("nan"), 1e20]), ["5", "0.25", None, None, "1e+20"]),
        (pa.array([1, None, -3], pa.int32()), ["1", None, "-3"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([["a", None, "b"], [], None, ["", " "], ["<i>c</i>"]]), ["a, b", None, None, None, "c"]),
        (pa.array([[["a", "b"], ["c"]], [[], None, ["d"]], None]), ["a, b, c", "d", None]),
        (pa.array([[1.0, 2.5], [None]]), ["1, 2.5", None]),
        (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), ["a, b", None]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.nulls(2), [None, None]),
        (pa.array([["a"], ["b", "c"], ["d"]], pa.large_list(pa.large_string())).slice(1), ["b, c", "d"]),
        (pa.chunked_array([["a"], ["b", None]]), ["a", "b", None]),
    ],
    ids=lambda value: str(value.type) if hasattr(value, "type") else "",
)
def test_types_of_columns(array: pa.Array, expected: list[str | None]) -> None:
    table = pa.table({"item_id": [str(i) for i in range(len(array))], "c": array})
    assert texts(table, "{c}") == expected


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("{a}. {b}. {c}", "xyz", "x. y. z"),
        ("{a}. {b}. {c}", "x-z", "x. z"),
        ("{a}. {b}. {c}", "x--", "x"),
        ("{a}. {b}. {c}", "-y-", "y"),
        ("{a}. {b}. {c}", "--z", "z"),
        ("{a}. {b}. {c}", "---", None),
        ("{a} ({b}), {c}.", "xyz", "x (y), z."),
        ("{a} ({b}), {c}.", "x-z", "x, z."),
        ("{a} ({b}), {c}.", "xy-", "x (y)"),
        ("{a} ({b}), {c}.", "-yz", "(y), z."),
        ("Title: {a}. Brand: {b}", "xy-", "Title: x. Brand: y"),
        ("Title: {a}. Brand: {b}", "-y-", "Brand: y"),
        ("Title: {a}. Brand: {b}", "x--", "Title: x"),
        ("{{{a}}} {b}", "xy-", "{x} y"),
        ("{a}{a}", "x--", "xx"),
    ],
)
def test_nothing_is_left_of_empty_fields(template: str, row: str, text: str | None) -> None:
    columns = {name: [value if value != "-" else None] for name, value in zip("abc", row, strict=True)}
    table = items(**{name: pa.array(values, pa.string()) for name, values in columns.items()})
    assert texts(table, template) == [text]


def test_punctuation_of_the_content_stays() -> None:
    assert texts(items(a=["Wait... . what?!"], b=["x"]), "{a}. {b}") == ["Wait... . what?!. x"]


def test_very_long_text_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    table = items(a=["word " * 20_000, "short", "漢" * 100_000])
    with caplog.at_level(logging.WARNING):
        made = texts(table, "{a}", max_chars=1000)
    assert [len(text or "") for text in made] == [999, 5, 1000]  # a blank at the end goes
    assert "2 texts are longer than 1,000 characters" in caplog.text


def test_missing_column_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="'brand', which items lack; there are item_id, title"):
        texts(items(title=["x"]), "{title} {brand}")


@pytest.mark.parametrize(
    "template", ["{c.__class__}", "{c[0]}", "{c!r}", "{c:>10}", "{}", "{0}", "{c", "no field", "{c.x[1]}"]
)
def test_more_than_a_name_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        texts(items(c=["x"]), template)


def test_structs_are_refused() -> None:
    with pytest.raises(ValueError, match="struct"):
        texts(items(c=[{"a": 1}]), "{c}")


def test_duplicate_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="'a'"):
        texts(pa.table({"item_id": ["a", "a"], "c": ["x", "y"]}), "{c}")


def test_no_items() -> None:
    assert (
        texts(pa.table({"item_id": pa.array([], pa.string()), "c": pa.array([], pa.string())}), "{c}") == []
    )


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string()])
def test_extra_joins_by_id_and_keeps_order(kind: pa.DataType) -> None:
    table = pa.table({"item_id": ["3", "1", "7"]})
    plots = pa.table({"movie_id": pa.array([1, 2, 3]).cast(kind), "plot": ["one", "two", "three"]})
    assert extra(table, plots, "movie_id").to_pydict() == {
        "item_id": ["3", "1", "7"],
        "plot": ["three", "one", None],
    }


def test_extra_takes_the_first_of_repeated_ids(caplog: pytest.LogCaptureFixture) -> None:
    plots = pa.table({"id": ["1", "1"], "plot": ["first", "second"]})
    with caplog.at_level(logging.WARNING):
        assert extra(pa.table({"item_id": ["1"]}), plots, "id")["plot"].to_pylist() == ["first"]
    assert "1 rows" in caplog.text


def test_extra_refuses_what_it_cannot_join() -> None:
    table = items(title=["x"])
    with pytest.raises(ValueError, match="no column 'movie'; it has id"):
        extra(table, pa.table({"id": ["1"]}), "movie")
    with pytest.raises(ValueError, match="column 'title' already"):
        extra(table, pa.table({"id": ["1"], "title": ["y"]}), "id")
