"""Frozen classes that are made without the `dataclasses` module, which costs a program that only emits events too much.

    @frozen
    class SymbolDefinition:          what `@dataclass(frozen=True, slots=True)` makes: fields, __init__, ==, hash, repr,
        key: int                     pickling and copying; `dataclasses.replace`, `fields` and `asdict` know it too
        text: str

A user sees no difference (tests/base/test_frozen.py). `dataclasses` is imported only when it is needed.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing it from `typing` would double the time of `import aiotrace`
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**options):
        return lambda function: function


__all__ = ["frozen"]


class _Fields:
    """`__dataclass_fields__`, made when it is first looked at."""

    def __init__(self, cls: type, defaults: dict[str, Any]) -> None:
        self._class = cls
        self._defaults = defaults
        self._made: dict[str, Any] | None = None

    def __get__(self, instance: object, owner: type) -> dict[str, Any]:
        if self._made is None:
            import dataclasses

            columns = [
                (name, kind, dataclasses.field(default=self._defaults.get(name, dataclasses.MISSING)))
                for name, kind in self._class.__annotations__.items()
            ]
            made: Any = dataclasses.make_dataclass(self._class.__name__, columns, frozen=True)
            self._made = made.__dataclass_fields__
        return self._made


@dataclass_transform(frozen_default=True)
def frozen(cls: type[T]) -> type[T]:
    """The class with slots for its annotated names, in their order; those with a value have it as default."""
    names = tuple(cls.__annotations__)
    space = {key: value for key, value in vars(cls).items() if key not in (*names, "__dict__", "__weakref__")}
    defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}

    # Compiled for the fields, so that making one costs what a hand-written __init__ does
    signature = "".join(f", {name}=_defaults[{name!r}]" if name in defaults else f", {name}" for name in names)
    body = "".join(f"\n _set(self, {name!r}, {name})" for name in names)
    values = "".join(f"self.{name}, " for name in names)
    code = f"def __init__(self{signature}):{body}\ndef _values(self): return ({values})"
    made: dict[str, Any] = {"_defaults": defaults, "_set": object.__setattr__}
    exec(code, made)  # noqa: S102  # of identifiers that stand in our own sources
    initialise, values_of = made["__init__"], made["_values"]

    def __repr__(self: Any) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in zip(names, values_of(self), strict=True))
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self: Any, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        same: bool = values_of(self) == values_of(other)
        return same

    def __hash__(self: Any) -> int:
        return hash(values_of(self))

    def __reduce__(self: Any) -> tuple[Any, ...]:
        return type(self), values_of(self)

    def __replace__(self: Any, /, **changes: Any) -> Any:
        return type(self)(**{**dict(zip(names, values_of(self), strict=True)), **changes})

    def __setattr__(self: Any, name: str, value: object) -> None:
        raise _frozen_error(f"cannot assign to field {name!r}")

    def __delattr__(self: Any, name: str) -> None:
        raise _frozen_error(f"cannot delete field {name!r}")

    for function in (initialise, __repr__, __eq__, __hash__, __reduce__, __replace__, __setattr__, __delattr__):
        function.__qualname__ = f"{cls.__qualname__}.{function.__name__}"
        function.__module__ = cls.__module__
        space.setdefault(function.__name__, function)
    space.update(__slots__=names, __match_args__=names, __qualname__=cls.__qualname__)
    space["__dataclass_fields__"] = _Fields(cls, defaults)
    return type(cls.__name__, cls.__bases__, space)


def _frozen_error(message: str) -> Exception:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(message)
