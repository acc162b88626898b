"""aiotrace._base.warn: told, or nothing, but never raised."""

from __future__ import annotations

import warnings

from aiotrace._base.warn import warn


def tell(stacklevel: int) -> None:
    warn("it went wrong", stacklevel=stacklevel)


def test_a_warning_is_of_the_line_that_is_asked_for() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tell(1)
        tell(2)
    here = test_a_warning_is_of_the_line_that_is_asked_for.__code__.co_firstlineno
    lines = [tell.__code__.co_firstlineno + 1, here + 4]
    assert [(warning.filename, warning.lineno) for warning in told] == [(__file__, line) for line in lines]
    assert {(warning.category, str(warning.message)) for warning in told} == {(RuntimeWarning, "it went wrong")}


def test_where_warnings_are_errors_nothing_is_raised() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(1)
