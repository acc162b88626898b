"""The filter language: what it takes, what it answers, and what it says of what it does not take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._base.errors import ConfigurationError
from aiotrace._page.filter import compile_filter

FIELDS = {"n": 5, "f": 2.5, "s": "x y", "empty": "", "yes": True, "no": False, "flags": 0x12, "data": b"x", "neg": -3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n == 5", True),
        ("n != 5", False),
        ("n > 5", False),
        ("n >= 5", True),
        ("n < 0x6", True),
        ("n <= 4", False),
        ("neg == -3", True),
        ("f > 2", True),
        ("f == 2.5", True),
        ("f < 2.5e0", False),
        ('s == "x y"', True),
        ("s == 'x y'", True),
        ('s != "x y"', False),
        ('s ~ "x*"', True),
        ('s ~ "y*"', False),
        ('s !~ "y*"', True),
        ("s ~ x?y", None),
        ("yes == true", True),
        ("no == true", False),
        ("yes", True),
        ("no", False),
        ("empty", False),
        ("!no", True),
        ("flags & 2", True),
        ("flags & 0x1", False),
        ('n > 5 && s == "x y"', False),
        ('n > 5 || s == "x y"', True),
        ("n == 5 || n == 6 && no", True),
        ("(n == 5 || n == 6) && no", False),
        ("!(n == 5 && f == 2.5)", False),
        ("n==5&&f==2.5", True),
        ("missing == 5", False),
        ("missing != 5", False),
        ("missing", False),
        ('n == "5"', False),
        ('n != "5"', False),
        ("s == 5", False),
        ("s != 5", False),
        ('data ~ "x"', False),
        ("s & 1", False),
        ("pid == 9", False),
        (r's == "a\"b"', False),
    ],
)
def test_a_filter_answers(text: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(ConfigurationError):
            compile_filter(text)
    else:
        assert compile_filter(text)(FIELDS) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a field's name should be at 0, found the end"),
        ("n >", "a number, a string or a word should be at 3, found the end"),
        ("n > 5 &&", "a field's name should be at 8, found the end"),
        ("n > 5 n", "&&, || or the end should be at 6, found 'n'"),
        ("(n > 5", r"'\)' should be at 6, found the end"),
        ("5 == n", "a field's name should be at 0, found '5'"),
        ("n = 5", "should be at 1, found '= 5'"),
        ("n & x", "a whole number should be at 4, found 'x'"),
        ("n & 1.5", "a whole number"),
        ('s == "open', "should be at"),
        ("(" * 60 + "n" + ")" * 60, "no more than 50 levels"),
        ("!" * 60 + "n", "no more than 50 levels"),
        ("n" * 10_001, "10001 characters"),
        ("n == " + "9" * 5000, "a number, a string or a word should be at 5"),
    ],
)
def test_invalid_filter_is_refused_with_the_position(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compile_filter(text)


def test_the_event_itself_answers_for_pid_cpu_and_comm() -> None:
    event = SimpleNamespace(pid=9, cpu=3, comm="worker")
    assert compile_filter('pid == 9 && cpu == 3 && comm ~ "w*" && common_pid == 9')({}, event)
    assert not compile_filter("pid == 8")({}, event)


def test_field_hides_the_attribute_of_the_event() -> None:
    event = SimpleNamespace(pid=9, cpu=3, comm="worker")
    assert compile_filter("pid == 1")({"pid": 1}, event)
    assert not compile_filter("pid == 9")({"pid": 1}, event)


def test_filter_has_the_fields_it_uses() -> None:
    assert compile_filter("a > 1 && (b || !c)").fields == {"a", "b", "c"}


@given(st.text(max_size=200))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        compile_filter(text)({}, None)
    except ConfigurationError:
        pass


leaves = st.tuples(st.sampled_from("abc"), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.integers(-3, 3))
trees: st.SearchStrategy[Any] = st.recursive(
    leaves.map(lambda leaf: ("test", *leaf)),
    lambda inner: st.one_of(st.tuples(st.sampled_from(["&&", "||"]), inner, inner), st.tuples(st.just("!"), inner)),
    max_leaves=12,
)


def written(tree: Any) -> str:
    if tree[0] == "test":
        return f"{tree[1]} {tree[2]} {tree[3]}"
    if tree[0] == "!":
        return f"!({written(tree[1])})"
    return f"({written(tree[1])}) {tree[0]} ({written(tree[2])})"


def answer(tree: Any, values: dict[str, int]) -> bool:
    if tree[0] == "test":
        left, right = values[tree[1]], tree[3]
        return bool(
            {"==": left == right, "!=": left != right, "<": left < right, "<=": left <= right}.get(
                tree[2], left > right if tree[2] == ">" else left >= right
            )
        )
    if tree[0] == "!":
        return not answer(tree[1], values)
    both = answer(tree[1], values), answer(tree[2], values)
    return all(both) if tree[0] == "&&" else any(both)


@given(trees, st.fixed_dictionaries({name: st.integers(-3, 3) for name in "abc"}))
def test_any_filter_answers_as_its_meaning_does(tree: Any, values: dict[str, int]) -> None:
    assert compile_filter(written(tree))(values) is answer(tree, values)
