"""Reading pickled NumPy arrays without letting the pickle run anything.

A pickle is a program: loading one calls whatever it names. The files of this field name only three things,
the three that NumPy needs to rebuild an array. Here those names lead to stand-ins that note what they are
given and check it; any other name, the real NumPy included, is refused before it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_pickle"]

_KINDS = frozenset("biuf")  # booleans, integers and floats; no objects, strings, dates or records
_MAX_DIMENSIONS = 8


def load_pickle(path: str | Path) -> Any:
    """Load a pickle made of dicts, lists, tuples, strings, numbers and NumPy arrays.

    Args:
        path: the file, in protocol 3 or 4 (with others NumPy names further globals), written by any NumPy
            (``numpy.core`` became ``numpy._core`` in version 2).

    Returns:
        The object. Arrays in it are `PickledArray`; `PickledArray.array` gives the read-only NumPy array.

    Raises:
        ValueError: if the pickle names anything but the three NumPy globals, holds arrays of objects, is
            truncated or otherwise not such a file. Nothing that it names has been imported or called.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        _check_memo(content)
        return _Unpickler(io.BytesIO(content)).load()
    except Exception as error:
        # A damaged pickle fails in countless ways (EOFError, IndexError, TypeError, MemoryError, ...).
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not a readable pickle of plain data and arrays: {reason}") from error


class _RefusedError(ValueError):
    """What the pickle asks for is not allowed."""


class _StandIn:
    """One of the three globals: without attributes or state, so that a pickle can only call it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise _RefusedError("it sets the state of a global")


class _NdarrayName(_StandIn):
    """``numpy.ndarray``: only ever passed on to ``_reconstruct``."""

    __slots__ = ()


class _Reconstruct(_StandIn):
    """``numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")``: an empty array, filled in afterwards."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> PickledArray:
        if not isinstance(kind, _NdarrayName) or shape != (0,) or code not in (b"b", "b"):
            raise _RefusedError("it rebuilds something that is not a plain array")
        return PickledArray()


class _DtypeName(_StandIn):
    """``numpy.dtype(code, align, copy)``."""

    __slots__ = ()

    def __call__(self, code: object, align: object = False, copy: object = False) -> _Dtype:
        if align not in (0, 1) or copy not in (0, 1):
            raise _RefusedError("it describes an unknown kind of number")
        return _Dtype(code)


class _Dtype:
    """A dtype that has been read but not yet trusted."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        if not isinstance(code, str):
            raise _RefusedError("it describes an unknown kind of number")
        if code[:1] == "O":
            raise _RefusedError("it holds an array of objects; only arrays of numbers are read")
        if code[:1] not in _KINDS or not code[1:].isascii() or not code[1:].isdigit() or len(code) > 3:
            raise _RefusedError(f"it holds an array of dtype {code[:20]!r}; only numbers are read")
        self.code = code
        self.order = "="

    def __setstate__(self, state: object) -> None:
        # (version, byte order, subarray, names, fields, item size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise _RefusedError("it holds an array of records; only arrays of numbers are read")
        if state[1] not in ("<", ">", "=", "|"):
            raise _RefusedError("it describes numbers of unknown byte order")
        self.order = str(state[1])

    def numpy(self) -> np.dtype[Any]:
        try:
            return np.dtype(self.order + self.code)
        except TypeError as error:
            raise _RefusedError(f"it holds an array of dtype {self.code!r}; only numbers are read") from error


class PickledArray:
    """An array found in a pickle; ``array`` is the NumPy array, read-only."""

    __slots__ = ("_array",)

    def __init__(self) -> None:
        self._array: NDArray[Any] | None = None

    @property
    def array(self) -> NDArray[Any]:
        """The array; a ValueError if the pickle never filled it in."""
        if self._array is None:
            raise _RefusedError("it holds an array without contents")
        return self._array

    def __setstate__(self, state: object) -> None:
        if self._array is not None or not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("it fills an array in an unknown way")
        version, shape, dtype, fortran, data = state
        if version != 1 or not isinstance(dtype, _Dtype) or fortran not in (0, 1):
            raise _RefusedError("it fills an array in an unknown way")
        if not isinstance(data, bytes):
            raise _RefusedError("it holds an array of objects; only arrays of numbers are read")
        if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
            raise _RefusedError("it holds an array of unknown shape")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise _RefusedError("it holds an array of unknown shape")
        numbers = dtype.numpy()
        if math.prod(shape) * numbers.itemsize != len(data):
            raise _RefusedError(
                f"it holds an array of shape {shape} and dtype {numbers} in {len(data)} bytes"
            )
        self._array = np.frombuffer(data, dtype=numbers).reshape(shape, order="F" if fortran else "C")


_ALLOWED: dict[tuple[str, str], _StandIn] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _NdarrayName(),
    ("numpy", "dtype"): _DtypeName(),
}


def _check_memo(content: bytes) -> None:
    """Refuse to remember more objects than the file can hold: Python allocates up to the highest index."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise _RefusedError(f"it asks for memory for {argument} objects")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(
                f"refused, because it names {module}.{name}; only numpy.ndarray, numpy.dtype and "
                "numpy.core.multiarray._reconstruct are allowed"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError(f"refused, because it refers to an outside {type(pid).__name__}")
