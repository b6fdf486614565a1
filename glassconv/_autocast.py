"""What `torch.autocast` leaves alone: geometry, and everything that the kernels compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def autocasts(tensor: Any) -> bool:
    """Whether `torch.autocast` is on for the device of a tensor; False for what is no tensor."""
    if not torch._C._is_any_autocast_enabled() or not isinstance(tensor, Tensor):  # almost always
        return False
    device_type = tensor.device.type
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def widened(value: Any) -> Any:
    """A tensor of float16 or bfloat16, which autocast made of it, in float32; anything else as it is."""
    is_narrow = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_narrow else value
