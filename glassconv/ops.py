"""Shapes without data (fake), derivatives (autograd) and batching (vmap) of the native operators.

Loaded together with the extension. Each derivative is an operator of its own, first and second order; a third
derivative raises an error. All of them are functional: no input is written to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_lib = "glassconv::"
_DIM_SH, _DIM_OUT = 1, 2  # places in `spec`
_N_DIFFERENTIABLE = 4  # x, angular, weight, mix: the first arguments of `conv`


def _contiguous_like(tensor: Tensor) -> Tensor:
    # the kernels' outputs are contiguous whatever the strides of their inputs
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _new_gradient(wanted: bool, like: Tensor | None, options: Tensor) -> Tensor:
    return options.new_empty(0) if like is None or not wanted else _contiguous_like(like)


def _new_edges(positions: Tensor, batch: Tensor, n_edges: Any) -> tuple[Tensor, ...]:
    shifts = batch.new_empty(n_edges, 3, dtype=torch.int32)
    row_ptr = batch.new_empty(positions.shape[0] + 1)
    return batch.new_empty(2, n_edges), shifts, row_ptr, batch.new_empty(n_edges)


@torch.library.register_fake(_lib + "neighbor_list")
def _neighbor_list_fake(
    positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    n_edges = torch.library.get_ctx().new_dynamic_size()  # known only after the search
    return _new_edges(positions, batch, n_edges)


@torch.library.register_fake(_lib + "neighbor_list_half")
def _neighbor_list_half_fake(positions: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    edge_index, shifts, row_ptr, slots = _neighbor_list_fake(positions, *args, **kwargs)
    return edge_index, shifts, row_ptr, torch.empty_like(row_ptr), slots


@torch.library.register_fake(_lib + "neighbor_list_fixed")
def _neighbor_list_fixed_fake(positions: Tensor, *args: Any) -> tuple[Tensor, ...]:
    _cell, _pbc, batch, _cutoff, capacity = args[:5]
    return *_new_edges(positions, batch, capacity), batch.new_empty(1)


@torch.library.register_fake(_lib + "neighbor_list_update")
def _neighbor_list_update_fake(*args: Any) -> None:
    pass


@torch.library.register_fake(_lib + "neighbor_list_filter")
def _neighbor_list_filter_fake(
    positions: Tensor, cell: Tensor, batch: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    return _new_edges(positions, batch, torch.library.get_ctx().new_dynamic_size())


@torch.library.register_fake(_lib + "conv")
def _conv_fake(x: Tensor, *args: Any) -> Tensor:
    spec = args[-2]
    return x.new_empty(x.shape[0], spec[_DIM_OUT])


@torch.library.register_fake(_lib + "conv_backward")
def _conv_backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    mask = args[-1]
    inputs = args[:_N_DIFFERENTIABLE]
    return tuple(_new_gradient(wanted, like, grad_out) for wanted, like in zip(mask, inputs, strict=True))


@torch.library.register_fake(_lib + "conv_double_backward")
def _conv_double_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    mask = args[-1]
    inputs = args[_N_DIFFERENTIABLE : 2 * _N_DIFFERENTIABLE + 1]
    return tuple(_new_gradient(wanted, like, inputs[0]) for wanted, like in zip(mask, inputs, strict=True))


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    """Keep tensors through save_for_backward (so that autograd watches them), the rest on the context."""
    ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
    ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]


def _saved(ctx: Any) -> list[Any]:
    return [c if t is None else t for t, c in zip(ctx.saved_tensors, ctx.constants, strict=True)]


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save(ctx, inputs)


def _refuse_tangent(grad: Tensor) -> None:
    """Raise for forward-mode AD of a backward pass: the operators would drop the tangent in silence."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if forward_ad.unpack_dual(grad).tangent is not None:
        raise RuntimeError(
            "glassconv: expected a gradient without a forward-mode tangent in the native backward, got one; "
            "use glassconv.use_backend('reference') for forward mode over reverse mode"
        )


def _conv_autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    _refuse_tangent(grad_out)
    inputs = _saved(ctx)
    mask = [bool(needed) for needed in ctx.needs_input_grad[:_N_DIFFERENTIABLE]]
    grads = torch.ops.glassconv.conv_backward(grad_out, *inputs, mask)
    wanted = [grad if needed else None for grad, needed in zip(grads, mask, strict=True)]
    return (*wanted, *([None] * (len(inputs) - _N_DIFFERENTIABLE)))


def _conv_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    _save(ctx, inputs[:-1])
    ctx.wanted = inputs[-1]


def _conv_backward_autograd(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = _saved(ctx)  # grad_out, x, angular, weight, mix, graph, spec, given_sh
    n_inputs = _N_DIFFERENTIABLE + 1
    used = [v if wanted else None for v, wanted in zip(cotangents, ctx.wanted, strict=True)]
    mask = [bool(needed) for needed in ctx.needs_input_grad[:n_inputs]]
    if all(v is None for v in used):
        return (None,) * (len(inputs) + 1)
    grads = torch.ops.glassconv.conv_double_backward(*used, *inputs, mask)
    wanted = [grad if needed else None for grad, needed in zip(grads, mask, strict=True)]
    return (*wanted, *([None] * (len(inputs) + 1 - n_inputs)))


def _third_order_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _third_order(ctx: Any, *cotangents: Tensor | None) -> None:
    raise RuntimeError(
        "glassconv: expected at most second derivatives from the native operators, got a request for a "
        "third (torch.autograd.functional.hvp makes one too); use glassconv.use_backend('reference') for them"
    )


torch.library.register_autograd(_lib + "conv", _conv_autograd, setup_context=_conv_setup)
torch.library.register_autograd(
    _lib + "conv_backward", _conv_backward_autograd, setup_context=_conv_backward_setup
)
torch.library.register_autograd(_lib + "conv_double_backward", _third_order, setup_context=_third_order_setup)


@torch.library.register_fake(_lib + "spherical_harmonics")
def _harmonics_fake(vectors: Tensor, l_max: int) -> Tensor:
    return vectors.new_empty(vectors.shape[0], (l_max + 1) ** 2)


@torch.library.register_fake(_lib + "spherical_harmonics_backward")
def _harmonics_backward_fake(grad: Tensor, vectors: Tensor, l_max: int) -> Tensor:
    return _contiguous_like(vectors)


@torch.library.register_fake(_lib + "spherical_harmonics_double_backward")
def _harmonics_double_backward_fake(
    v: Tensor, grad: Tensor, vectors: Tensor, l_max: int
) -> tuple[Tensor, Tensor]:
    return vectors.new_empty(vectors.shape[0], (l_max + 1) ** 2), _contiguous_like(vectors)


def _harmonics_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.l_max = inputs[-1]


def _harmonics_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
    _refuse_tangent(grad)
    (vectors,) = ctx.saved_tensors
    return torch.ops.glassconv.spherical_harmonics_backward(grad, vectors, ctx.l_max), None


def _harmonics_backward_autograd(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
    grad, vectors = ctx.saved_tensors
    grad_grad, grad_vectors = torch.ops.glassconv.spherical_harmonics_double_backward(
        v, grad, vectors, ctx.l_max
    )
    return grad_grad, grad_vectors, None


torch.library.register_autograd(
    _lib + "spherical_harmonics", _harmonics_autograd, setup_context=_harmonics_setup
)
torch.library.register_autograd(
    _lib + "spherical_harmonics_backward", _harmonics_backward_autograd, setup_context=_harmonics_setup
)
torch.library.register_autograd(
    _lib + "spherical_harmonics_double_backward", _third_order, setup_context=_third_order_setup
)


def _vmap_by_loop(name: str, n_outputs: int) -> None:
    """Batch an operator by calling it once for each element: the kernels already fill the machine."""
    op = getattr(torch.ops.glassconv, name)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError(f"torch.vmap: expected a batch of at least 1 for glassconv::{name}, got 0")

        def element(arg: Any, dim: Any, i: int) -> Any:
            return arg.select(dim, i) if isinstance(arg, Tensor) and isinstance(dim, int) else arg

        results = [
            op(*(element(arg, dim, i) for arg, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if n_outputs == 1:
            return torch.stack(results), 0
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * n_outputs

    torch.library.register_vmap(_lib + name, rule)


for _name, _n_outputs in (
    ("conv", 1),
    ("conv_backward", _N_DIFFERENTIABLE),
    ("conv_double_backward", _N_DIFFERENTIABLE + 1),
    ("spherical_harmonics", 1),
    ("spherical_harmonics_backward", 1),
    ("spherical_harmonics_double_backward", 2),
):
    _vmap_by_loop(_name, _n_outputs)
