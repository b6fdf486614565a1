"""Arrays of any library: what holds numbers is read as a tensor, and results go back as the caller's kind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# A torch.Tensor, or an array of NumPy, CuPy, JAX or another library that speaks DLPack.
Array: TypeAlias = Any

_DLPACK_CPU = 1  # kDLCPU of the DLPack standard


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """``value`` as a dense tensor, without a copy where its memory can be shared.

    Python numbers keep their precision (float64, int64). What is not a tensor yet goes to ``device``.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        if np.ma.is_masked(value):
            n_masked = int(np.ma.getmaskarray(value).sum())
            raise ValueError(f"{name}: expected an array without masked values, got {n_masked} of them")
        try:
            # an array on a GPU may have `__array__` only to refuse
            on_cpu = not hasattr(value, "__dlpack_device__") or value.__dlpack_device__()[0] == _DLPACK_CPU
            if on_cpu and (hasattr(value, "__array__") or not hasattr(value, "__dlpack__")):
                array = np.asarray(value)
                tensor = torch.from_numpy(array if _is_shareable(array) else _native_copy(array))
            else:
                tensor = torch.utils.dlpack.from_dlpack(value)
        except (AssertionError, TypeError, ValueError, OverflowError, RuntimeError, BufferError) as error:
            raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from error
        tensor = tensor.to(device)
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = "a nested tensor" if tensor.is_nested else tensor.layout
        raise ValueError(f"{name}: expected a dense tensor, got {layout}")
    return tensor


def _is_shareable(array: np.ndarray[Any, Any]) -> bool:
    """Whether torch takes its memory as it is: writeable, aligned, of native byte order, forward strides."""
    flags = array.flags
    return flags.writeable and flags.aligned and array.dtype.isnative and min(array.strides, default=0) >= 0


def _native_copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(array.dtype.newbyteorder("="), order="C", subok=False)


def tensor_with_values(name: str, value: Any) -> Tensor:
    """`as_tensor`, for what has to be looked into."""
    tensor = as_tensor(name, value)
    if tensor.is_meta:
        raise ValueError(f"{name}: expected a tensor with values, got one on the meta device")
    return tensor


def kind_of(value: Any) -> Callable[[Tensor], Array] | None:
    """What makes a tensor an array of the library that ``value`` comes from, sharing memory where that can.

    None where the tensor itself is that: for tensors, Python numbers, nested lists, and arrays of a library
    that is not known. What only NumPy can read (``__array__``) counts as NumPy's.
    """
    if isinstance(value, Tensor):
        return None
    if isinstance(value, np.ndarray):  # those of NumPy 1 have no namespace
        return as_numpy
    if hasattr(value, "__array_namespace__"):
        library = value.__array_namespace__()
    else:  # CuPy had its arrays' `__dlpack__` long before their namespace
        name = type(value).__module__.partition(".")[0] if hasattr(value, "__dlpack__") else ""
        library = sys.modules.get(name)
    if hasattr(library, "from_dlpack"):
        return lambda tensor: library.from_dlpack(tensor.detach().contiguous())
    return as_numpy if hasattr(value, "__array__") else None


def in_kind_of(value: Any, tensor: Tensor) -> Array:
    """``tensor`` as an array of the library that ``value`` comes from."""
    convert = kind_of(value)
    return tensor if convert is None else convert(tensor)


def as_numpy(tensor: Tensor) -> Array:
    """The NumPy array in the memory of a tensor (of a copy if that is on a GPU), without its gradient."""
    return tensor.detach().cpu().numpy()
