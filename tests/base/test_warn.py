"""aiotrace._base.warn: told, or nothing, but never raised."""

from __future__ import annotations

import warnings

from aiotrace._base.warn import warn


def tell(stacklevel: int) -> None:
    warn("it went wrong", stacklevel=stacklevel)


def test_warning_has_the_requested_line() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tell(1)
        tell(2)
    here = test_warning_has_the_requested_line.__code__.co_firstlineno
    lines = [tell.__code__.co_firstlineno + 1, here + 4]
    assert [(warning.filename, warning.lineno) for warning in told] == [(__file__, line) for line in lines]
    assert {(warning.category, str(warning.message)) for warning in told} == {(RuntimeWarning, "it went wrong")}


def test_nothing_is_raised_when_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(1)
