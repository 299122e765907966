"""What few rows of the process table have: columns that mark them, dictionaries that tell when there are any."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

__all__ = ["Rare", "Watched"]

_V = TypeVar("_V")


class Watched(dict[int, _V]):
    """A dictionary of what few tasks have; it tells the table when the first comes or the last goes."""

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, key: int, value: _V) -> None:
        super().__setitem__(key, value)
        if len(self) == 1:
            self._changed()

    def __delitem__(self, key: int) -> None:
        super().__delitem__(key)
        if not self:
            self._changed()

    def pop(self, key: int, default: Any = None) -> Any:
        """As a dict's, with None as the default."""
        if key not in self:
            return default
        value = super().pop(key)
        if not self:
            self._changed()
        return value

    def setdefault(self, key: int, default: Any = None) -> _V:
        """As a dict's."""
        value: _V = super().setdefault(key, default)
        if len(self) == 1:
            self._changed()
        return value


if TYPE_CHECKING:
    _Column = array[int]
else:
    _Column = array  # no generic class at run time before Python 3.12


class Rare(_Column):
    """A column with 0 in most rows; it marks in `odd` the rows that were ever given something else."""

    __slots__ = ("_odd",)
    _odd: bytearray

    def __new__(cls, typecode: str, odd: bytearray) -> Self:
        """One row."""
        column = super().__new__(cls, typecode, [0])
        column._odd = odd
        return column

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, slice):
            self._odd[key] = b"\1" * len(value)
        elif value:
            self._odd[key] = 1
        super().__setitem__(key, value)
