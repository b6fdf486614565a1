"""Periodic radius graphs as a transform of PyTorch Geometric."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import glassconv

try:
    from torch_geometric.data import Data
    from torch_geometric.data.datapipes import functional_transform
    from torch_geometric.transforms import BaseTransform
except ImportError as error:
    raise ImportError(
        "glassconv.compat.pyg needs PyTorch Geometric: pip install 'glassconv[compat]'"
    ) from error

__all__ = ["PeriodicRadiusGraph"]


@functional_transform("periodic_radius_graph")
class PeriodicRadiusGraph(BaseTransform):
    """Edges between nodes closer than ``cutoff``, every periodic image included: `glassconv.neighbor_list`.

    No number of neighbors is given and none is left out. Reads of ``data``, which may be a batch of B graphs:

    | attribute | shape                     | in a batch                | what                               |
    |-----------|---------------------------|---------------------------|------------------------------------|
    | ``pos``   | (N, 3)                    | (N, 3)                    | float32 or float64, in cell or out |
    | ``cell``  | (3, 3), (1, 3, 3)         | (B, 3, 3), (3 B, 3)       | lattice vectors in rows, or        |
    |           | (3), (1, 3)               | (B, 3), (3 B)             | box lengths; None or absent: open  |
    | ``pbc``   | bool, (1), (3), (1, 3)    | bool, (B), (3 B), (B, 3)  | periodic ones; None or absent: all |
    | ``batch`` | None                      | (N)                       | graph of each node, non-decreasing |

    In a batch these are the shapes that `Batch.from_data_list` makes of the others, so that the transform
    gives the same edges before batching (in a data set) and after. In a batch, each value is for one graph;
    with three graphs, what could be meant for all of them alike and did not come from batching is refused:
    ``pbc`` (3) with unequal flags, and ``cell`` (3, 3).

    Writes to a copy of ``data``, as transforms do:

    | attribute       | shape  | dtype       | what                                                |
    |-----------------|--------|-------------|-----------------------------------------------------|
    | ``edge_index``  | (2, E) | int64       | source and target (PyG's flow "source_to_target")   |
    | ``edge_shift``  | (E, 3) | that of pos | whole cell vectors between the images of the two    |
    | ``edge_vec``    | (E, 3) | that of pos | ``pos[target] - pos[source] + edge_shift @ cell``   |
    | ``edge_weight`` | (E)    | that of pos | length of ``edge_vec``                              |

    Edges are sorted by target, then source. ``edge_vec`` and ``edge_weight`` are differentiable in ``pos``
    and ``cell``; for derivatives in other positions than these, a model computes them anew from
    ``edge_shift``, which has the dtype of ``pos`` for that. Of former edges, ``edge_attr`` becomes None, and
    ``edge_vec`` and ``edge_weight`` are removed where they are not written.

    Args:
        cutoff: in the unit of the positions.
        vectors: whether to write ``edge_vec``.
        distances: whether to write ``edge_weight``.

    Raises:
        ValueError: a cutoff, and later ``data``, that `glassconv.neighbor_list` refuses or of other shapes;
            negative box lengths.

    >>> from torch_geometric.data import Data
    >>> data = Data(pos=torch.tensor([[0.2, 0.0, 0.0], [2.8, 0.0, 0.0]]), cell=torch.eye(3) * 3.0)
    >>> data = PeriodicRadiusGraph(cutoff=1.0)(data)
    >>> data.edge_index
    tensor([[1, 0],
            [0, 1]])
    >>> data.edge_weight
    tensor([0.4000, 0.4000])
    """

    def __init__(self, cutoff: float, *, vectors: bool = True, distances: bool = True) -> None:
        glassconv.neighbor_list(torch.zeros(0, 3), cutoff)  # which looks at the cutoff
        self.cutoff = cutoff
        self.vectors = vectors
        self.distances = distances

    def forward(self, data: Data) -> Data:
        """Write the edges to ``data`` itself."""
        if not isinstance(data, Data):
            raise ValueError(f"data: expected torch_geometric.data.Data, got {type(data).__name__}")
        if not isinstance(data.pos, Tensor):
            raise ValueError(f"data.pos: expected a tensor of shape (N, 3), got {type(data.pos).__name__}")
        batch = data.batch
        n_graphs = 1 if batch is None else _n_graphs(data)
        cell, pbc = _cell(data, n_graphs), _pbc(data, n_graphs)
        if batch is None:
            cell, pbc = None if cell is None else cell[0], pbc[0]
        graph = glassconv.neighbor_list(data.pos, self.cutoff, cell, pbc, batch)
        if data.edge_attr is not None:
            data.edge_attr = None
        data.edge_index = graph.edge_index
        data.edge_shift = graph.shifts.to(data.pos.dtype)
        for name, wanted, compute in (
            ("edge_vec", self.vectors, graph.vectors),
            ("edge_weight", self.distances, graph.distances),
        ):
            if wanted:
                data[name] = compute(data.pos, cell)
            elif name in data:
                del data[name]
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cutoff={self.cutoff})"


def _n_graphs(data: Data) -> int:
    counted = getattr(data, "num_graphs", None)  # a `Batch` has it, and may end with graphs without nodes
    return int(counted) if counted is not None else int(data.batch.max()) + 1 if len(data.batch) else 0


def _cell(data: Data, n_graphs: int) -> Tensor | None:
    """(B, 3, 3) or (B, 3), from what collation made of cells or box lengths."""
    value = getattr(data, "cell", None)
    if value is None:
        return None
    cell, n = _tensor("data.cell", value), n_graphs
    if cell.shape in ((n, 3, 3), (3 * n, 3)):
        return cell.reshape(n, 3, 3)
    if cell.shape not in ((n, 3), (3 * n,)):
        expected = f"({n}, 3, 3), ({3 * n}, 3), ({n}, 3) or ({3 * n},) for a number of graphs of {n}"
        raise ValueError(f"data.cell: expected shape {expected}, got {tuple(cell.shape)}")
    if cell.shape == (3, 3) and not _is_collated(data, "cell", 3):
        expected = "shape (3, 3, 3) for cells or (9,) for box lengths of 3 graphs"
        raise ValueError(f"data.cell: expected {expected}, got (3, 3), which could be either")
    lengths = cell.reshape(n, 3)
    if bool((lengths.real < 0).any()):
        raise ValueError(f"data.cell: expected box lengths from 0, got {lengths.real.min().item()}")
    return lengths


def _tensor(name: str, value: object) -> Tensor:
    try:
        return torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from error


def _pbc(data: Data, n_graphs: int) -> Tensor:
    """(B, 3), from what collation made of one flag or three for each graph."""
    value = getattr(data, "pbc", None)
    pbc, n = _tensor("data.pbc", True if value is None else value), n_graphs
    if pbc.shape in ((n, 3), (3 * n,)):
        return pbc.reshape(n, 3)
    if pbc.shape not in ((), (n,)):
        expected = f"(), ({n},), ({3 * n},) or ({n}, 3) for a number of graphs of {n}"
        raise ValueError(f"data.pbc: expected shape {expected}, got {tuple(pbc.shape)}")
    if pbc.shape == (3,) and len(set(pbc.tolist())) > 1 and not _is_collated(data, "pbc", 3):
        raise ValueError(
            "data.pbc: expected shape (3, 3) for 3 graphs, got (3,), which could be one flag for each graph "
            "or one for each cell vector"
        )
    return pbc.reshape(-1, 1).expand(n, 3)


def _is_collated(data: Data, name: str, n_rows: int) -> bool:
    """Whether an attribute with this number of rows was put together by `Batch.from_data_list`."""
    ends = getattr(data, "_slice_dict", {}).get(name)  # where the rows of each graph end
    return ends is not None and int(ends[-1]) == n_rows
