"""Classes made by `frozen` are what `@dataclass(frozen=True, slots=True)` would make."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest

from aiotrace._base.frozen import frozen
from aiotrace.abc import SymbolDefinition


@frozen
class Ours:
    """A doc."""

    key: int
    """About it."""
    text: str = "x"

    def twice(self) -> int:
        return 2 * self.key


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    key: int
    text: str = "x"


def test_a_frozen_class_has_signature_repr_and_slots_of_a_dataclass() -> None:
    assert str(inspect.signature(Ours.__init__)) == "(self, key, text='x')"
    assert repr(Ours(1)) == "Ours(key=1, text='x')"
    assert (Ours.__match_args__, Ours.__slots__) == (Theirs.__match_args__, Theirs.__slots__)  # type: ignore[attr-defined]
    assert (Ours.__doc__, Ours.__module__, Ours(4).twice()) == ("A doc.", __name__, 8)
    assert not hasattr(Ours(1), "__dict__")


def test_equal_are_those_of_one_class_with_equal_fields() -> None:
    assert Ours(1) == Ours(1) and hash(Ours(1)) == hash(Ours(1))
    assert Ours(1) != Ours(2) and Ours(1) != Ours(1, "y")
    assert Ours(1) != Theirs(1) and Ours(1) != (1, "x")


def test_a_field_can_neither_be_set_nor_deleted() -> None:
    made: Any = Ours(1)
    for change in (lambda: setattr(made, "key", 2), lambda: delattr(made, "key"), lambda: setattr(made, "other", 2)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    assert made.key == 1


def test_the_functions_of_dataclasses_know_a_frozen_class() -> None:
    made: Any = Ours(1)
    assert dataclasses.is_dataclass(Ours) and dataclasses.is_dataclass(made)
    assert [(field.name, field.default) for field in dataclasses.fields(made)] == [
        (field.name, field.default) for field in dataclasses.fields(Theirs)
    ]
    assert dataclasses.asdict(made) == {"key": 1, "text": "x"}
    assert dataclasses.replace(made, key=2) == Ours(2)


def test_an_instance_survives_pickling_and_copying() -> None:
    made = SymbolDefinition(16, "x")
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == copy.deepcopy(made) == made


def test_an_instance_matches_by_position() -> None:
    match Ours(1, "y"):
        case Ours(key, text):
            assert (key, text) == (1, "y")
