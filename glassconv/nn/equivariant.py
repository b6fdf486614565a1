"""e3nn's `Linear` and `BatchNorm` with fewer copies: same parameters, same results, same state dicts.

The output of a convolution is wide (several hundred columns): copies of it cost as much as the arithmetic.
"""

from __future__ import annotations

import warnings

import e3nn.nn
import e3nn.o3
import torch
from e3nn.o3 import Irreps
from torch import Tensor


class Linear(e3nn.o3.Linear):
    """`e3nn.o3.Linear` from irreps that stand once each: one matrix product per irrep.

    e3nn cuts the input with `narrow`, whose derivative fills a tensor of the input's size per irrep; that of
    `split` fills one for all. Weights and their order are e3nn's.

    Args:
        irreps_in: irreps of the input, each once.
        irreps_out: irreps of the output, among those of the input.

    Raises:
        ValueError: an input irrep that stands twice, or an output that no input reaches.
    """

    def __init__(self, irreps_in: str | Irreps, irreps_out: str | Irreps) -> None:
        given, wanted = Irreps(irreps_in), Irreps(irreps_out)
        if len({ir for _, ir in given}) < len(given):
            raise ValueError(f"irreps_in: expected every irrep once, got {given}")
        missing = [str(ir) for _, ir in wanted if ir not in given]
        if missing:
            raise ValueError(f"irreps_out: expected irreps that occur in {given}, got {missing}")
        with warnings.catch_warnings():
            # e3nn before 0.6 compiles its code, not used here, with TorchScript, which warns each time
            warnings.simplefilter("ignore")
            super().__init__(given, wanted, _optimize_einsums=False)
        self._widths = [block.dim for block in given]
        # as numbers (torch.compile cannot read irreps): input block, weight, multiplicity, dimension, scale
        self._by_output = [
            (path.i_in, k, given[path.i_in].mul, given[path.i_in].ir.dim, path.path_weight)
            for k, path in sorted(enumerate(self.instructions), key=lambda item: item[1].i_out)
        ]

    def forward(self, features: Tensor) -> Tensor:
        """(N, irreps_in.dim) -> (N, irreps_out.dim)."""
        blocks = features.split(self._widths, dim=1)
        weights = list(self.weight_views())
        outputs, n_rows = [], features.shape[0]
        for i_in, k, mul, dim, path_weight in self._by_output:
            # channels last, so that components and nodes are rows of one matrix product; a copy for scalars
            # too: what is kept for the derivatives is then the rows alone, not a view of all features
            rows = blocks[i_in].reshape(n_rows, mul, dim).transpose(1, 2).reshape(n_rows * dim, mul)
            # transposed, the product for the derivative in the weights is the quick one of two
            weight = (weights[k] * path_weight).T.contiguous()
            mixed = torch.nn.functional.linear(rows.contiguous(), weight).reshape(n_rows, dim, len(weight))
            outputs.append(mixed.transpose(1, 2).reshape(n_rows, dim * len(weight)))
        return torch.cat(outputs, dim=1)


class BatchNorm(e3nn.nn.BatchNorm):
    """`e3nn.nn.BatchNorm` over nodes ('component', mean), evaluated on all irreps at once.

    Scalars are centered and scaled to variance 1, other channels scaled to mean square 1 per component; then
    a weight per channel and a bias per scalar. An empty batch is normalized with the running statistics.

    Args:
        irreps: irreps of the features.
        eps: added to the variances.
        momentum: weight of the newest batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, irreps: str | Irreps, eps: float = 1e-5, momentum: float = 0.5) -> None:
        super().__init__(Irreps(irreps), eps=eps, momentum=momentum)
        # as numbers (torch.compile cannot read irreps): multiplicity, dimension, whether a scalar
        self._blocks = [(mul, ir.dim, ir.is_scalar()) for mul, ir in self.irreps]

    def forward(self, features: Tensor) -> Tensor:
        """(N, irreps.dim) -> (N, irreps.dim)."""
        features = features.to(self.weight.dtype)  # under autocast they are narrower, and statistics are not
        if self.training and features.shape[0] > 0:
            mean = self._of_scalars(features.mean(dim=0))
            centered = features - self._to_columns_of_scalars(mean)
            var = self._of_channels(centered.square().mean(dim=0))
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        else:
            centered = features - self._to_columns_of_scalars(self.running_mean)
            var = self.running_var
        scale = (var + self.eps).rsqrt() * self.weight
        return torch.addcmul(self._to_columns_of_scalars(self.bias), centered, self._to_columns(scale))

    def _of_scalars(self, columns: Tensor) -> Tensor:
        blocks = columns.split([mul * dim for mul, dim, _ in self._blocks])
        scalars = [block for block, (_, _, is_scalar) in zip(blocks, self._blocks, strict=True) if is_scalar]
        return torch.cat(scalars or [columns[:0]])

    def _of_channels(self, columns: Tensor) -> Tensor:
        blocks = columns.split([mul * dim for mul, dim, _ in self._blocks])
        return torch.cat(
            [
                block.reshape(mul, dim).mean(dim=1)
                for block, (mul, dim, _) in zip(blocks, self._blocks, strict=True)
            ]
        )

    def _to_columns(self, channels: Tensor) -> Tensor:
        parts = channels.split([mul for mul, _, _ in self._blocks])
        return torch.cat(
            [
                part[:, None].expand(mul, dim).reshape(-1)
                for part, (mul, dim, _) in zip(parts, self._blocks, strict=True)
            ]
        )

    def _to_columns_of_scalars(self, scalars: Tensor) -> Tensor:
        parts = iter(scalars.split([mul for mul, _, is_scalar in self._blocks if is_scalar]))
        return torch.cat(
            [
                next(parts) if is_scalar else scalars.new_zeros(mul * dim)
                for mul, dim, is_scalar in self._blocks
            ]
        )
