"""A neighbor list kept over the steps of a trajectory, and searched again only when it has to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassconv import _neighbor_checks as checks
from glassconv import neighbors
from glassconv._lattice import dot, norm, of_system, per_system, reciprocal_vectors
from glassconv._neighbor_checks import Cutoff, Given, Search, Systems
from glassconv.graph import Graph
from glassconv.reference.neighbors import Edges

__all__ = ["VerletList"]

_EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class _Kept:
    """A list, and the input it was made from, which later input is compared with."""

    edges: Edges
    n_found: Tensor | None  # (1) int64, with a capacity
    positions: Tensor  # (N, 3) float64
    dtype: torch.dtype
    cell: Tensor  # (S, 3, 3) float64
    pbc: Tensor  # (S, 3) bool
    types: Tensor | None
    systems: Systems
    cell_shape: tuple[int, ...] | None

    @classmethod
    def of(cls, given: Given, search: Search, edges: Edges, n_found: Tensor | None = None) -> _Kept:
        """Copies: what the caller gave may change in place, and `replace` changes these."""
        systems = search.systems
        if n_found is not None and systems.batch is not None:
            batch = systems.batch.clone()
            systems = systems._replace(batch=batch, indices=batch)
        return cls(
            edges=edges,
            n_found=n_found,
            positions=search.positions.to(torch.float64, copy=True),
            dtype=search.positions.dtype,
            cell=search.cell.clone(),
            pbc=search.pbc.clone(),
            types=None if search.types is None else search.types.clone(),
            systems=systems,
            cell_shape=checks.shape_of(given.cell),
        )

    def fits(self, given: Given) -> bool:
        """Whether input of these shapes, dtypes and devices can be compared with this list's at all."""
        r, n = checks.check_positions(given.positions), len(self.positions)
        if (len(r), r.dtype, r.device) != (n, self.dtype, self.positions.device):
            return False
        same_kinds = (given.batch is None) == (self.systems.batch is None)
        same_kinds &= (given.types is None) == (self.types is None)
        return same_kinds and checks.shape_of(given.cell) == self.cell_shape

    def replace(self, search: Search, needed: Tensor) -> None:
        """Take this input for the one that the list was made from, in place, where ``needed (1)`` holds."""
        olds = self.positions, self.cell, self.pbc, self.systems.batch, self.types
        news = search.positions, search.cell, search.pbc, search.systems.batch, search.types
        for old, new in zip(olds, news, strict=True):
            if old is not None and new is not None:
                old.copy_(torch.where(needed, new, old))


class VerletList:
    """Neighbor lists along a trajectory: searched with ``cutoff + skin``, and again only when that is needed.

    `update` takes the positions of each step and returns the graph `glassconv.neighbor_list` would, the
    same bits, from the pairs of the last search. They suffice as long as no pair can have come from beyond
    ``cutoff + skin`` to below ``cutoff``. With r0 and H0 the positions and the cell (rows) at the last
    search, r and H those of now,

        G = I + pinv(H) (H0 - H)          so that H G = H0; exactly I while the cell is the same
        u = r G - r0                      displacements, apart from the motion with the cell
        keep the list as long as          2 max|u - c| + cutoff ||G - I|| <= skin (1 - 1e-6)

    for each system. Open axes have no part in H, c is the middle of the box around all u of a system (a
    common translation changes no distance), and the norm is Frobenius'. Proof: an edge vector d, times G,
    is d0 + u_i - u_j, with d0 that of the same pair at the last search, so |d0| <= |d| ||G|| + 2 max|u - c|;
    and ||G|| <= 1 + ||G - I||. A pair now within the cutoff therefore had |d0| <= cutoff + skin (1 - 1e-6)
    and is in the list. The left side also has a term for the rounding of all this, which matters only far
    from the origin.

    Moving a particle by a cell vector, to bring it back into the cell, is a large displacement, too, and
    makes a new search. So does any change of the number of particles, dtype, device, ``pbc``, ``batch`` or
    ``types``.

    With a ``capacity`` nothing of this waits for a GPU: whether to search is decided there, and what was
    found lies in the same memory in every step. A step can so be captured in a CUDA graph, once the first
    update has allocated that memory. Without, each step on a GPU waits for one flag, and filtering for the
    number of edges. On a GPU filtering consists of elementary operations of torch,
    which pass over the list some tens of times; ``filtered=False`` does without them. ``torch.compile`` is
    not for `update`, which changes what it keeps: call it outside of what is compiled.

    >>> positions = torch.rand(100, 3, dtype=torch.float64) * 5.0
    >>> neighbors = VerletList(cutoff=1.2, skin=0.3)
    >>> for _ in range(10):
    ...     positions += 0.001 * torch.randn(100, 3, dtype=torch.float64)
    ...     graph = neighbors.update(positions, cell=[5.0, 5.0, 5.0])
    >>> neighbors.n_updates, neighbors.n_builds
    (10, 1)
    """

    def __init__(
        self, cutoff: Any, skin: float, *, filtered: bool = True, capacity: int | None = None
    ) -> None:
        """A list without particles yet.

        Args:
            cutoff: as for `glassconv.neighbor_list`: a number, or a symmetric (T, T) array for types; pairs
                of types with a cutoff of 0 stay apart whatever the skin.
            skin: what the search adds to the cutoff, above 0, same unit. More means fewer searches and more
                pairs to look at in each step; 0.1 to 0.3 cutoffs are usual.
            filtered: return the pairs below the cutoff. Otherwise those of the last search as they were
                then: all pairs below the cutoff, and others, at no more cost than looking at the
                displacements. Such a graph's ``cutoff`` is ``cutoff + skin``.
            capacity: the number of edges to make room for, of the list with the skin; None for as many as
                there are. See `glassconv.neighbor_list`.

        Raises:
            ValueError: a cutoff or capacity that `glassconv.neighbor_list` refuses, or a skin that is not a
                positive finite number.
        """
        has_pairs = isinstance(cutoff, list | tuple) or getattr(cutoff, "ndim", 0) == 2
        self._cutoff = checks.check_cutoff(cutoff, cutoff if has_pairs else None)
        try:
            if getattr(skin, "ndim", 0) > 1:
                raise ValueError(f"skin: expected a number, got an array of shape {np.shape(skin)}")
            self._skin = checks.check_cutoff(skin, None).largest
            self._reach = _widened(self._cutoff, self._skin)
        except ValueError as error:
            raise ValueError(str(error).replace("cutoff:", "skin:", 1)) from error
        self._is_filtered = bool(filtered)
        self._capacity = neighbors.check_capacity(capacity)
        self.n_updates = 0
        self._n_builds: Tensor | int = 0
        self._kept: _Kept | None = None

    @property
    def cutoff(self) -> float:
        """The cutoff, the largest one where they depend on types."""
        return self._cutoff.largest

    @property
    def skin(self) -> float:
        """What the search adds to the cutoff."""
        return self._skin

    @property
    def filtered(self) -> bool:
        """Whether graphs hold only the pairs below the cutoff."""
        return self._is_filtered

    @property
    def capacity(self) -> int | None:
        """The number of edges there is room for; None for as many as there are."""
        return self._capacity

    @property
    def n_builds(self) -> int:
        """How many of the updates have searched. With a capacity on a GPU, asking waits for it."""
        return int(self._n_builds)

    def __repr__(self) -> str:
        return (
            f"VerletList(cutoff={self.cutoff}, skin={self.skin}, filtered={self.filtered}, "
            f"capacity={self.capacity}, n_updates={self.n_updates})"
        )

    @torch.inference_mode(False)
    def update(
        self,
        positions: Any,
        cell: Any = None,
        pbc: bool | Sequence[bool] | Any = True,
        batch: Any = None,
        types: Any = None,
    ) -> Graph:
        """The graph of these positions, by a new search where needed.

        Args:
            positions: (N, 3) float32 or float64, and the others, as for `glassconv.neighbor_list`.
            cell: None, (3,) or (3, 3); with ``batch`` (B, 3), (B, 3, 3) or (3,).
            pbc: bool, 3 bools, or with ``batch`` (B, 3).
            batch: (N,) integers.
            types: (N,) integers, for a cutoff of pairs.

        Returns:
            What `glassconv.neighbor_list` returns for these arguments, with ``filtered`` the same bits. With
            a capacity its ``n_found``, when it does not fit, is that of the list with the skin, so that it
            tells which capacity would do; without ``filtered`` besides, the next update writes to its arrays.

        Raises:
            ValueError: as `glassconv.neighbor_list`; types without a cutoff of pairs, or it without types.
        """
        if (types is None) != (self._cutoff.matrix is None):
            got = "None" if types is None else "types for a cutoff that is one number"
            raise ValueError(f"types: expected types exactly when the cutoff is an array, got {got}")
        given = Given(positions, cell, pbc, batch, types)
        device = checks.check_positions(positions).device
        self._cutoff, self._reach = self._cutoff.to(device), self._reach.to(device)
        n_found = None
        try:
            if self.capacity is None:
                search, edges = self._update(given)
            else:
                search, edges, n_found = self._update_fixed(given, self.capacity)
            if self.filtered:
                search = search._replace(cutoff=self._cutoff.largest, cutoffs=self._cutoff.matrix)
                edges, n_found = self._filter(search, edges, n_found)
        except ValueError:
            neighbors.explain(given, self._reach)
            raise
        self.n_updates += 1
        return neighbors.make_graph(search, edges, n_found).like(positions)

    def _update(self, given: Given) -> tuple[Search, Edges]:
        kept = self._kept
        if kept is not None and kept.fits(given):
            search = neighbors.prepare(given, self._reach, fixed=False, systems=kept.systems)
            if not bool(self._is_stale(search, kept, given)):
                return search, kept.edges
        search = neighbors.prepare(given, self._reach, fixed=False)
        edges = neighbors.find_edges(search)
        self._kept = _Kept.of(given, search, edges)
        self._n_builds = self.n_builds + 1
        return search, edges

    def _update_fixed(self, given: Given, capacity: int) -> tuple[Search, Edges, Tensor]:
        search = neighbors.prepare(given, self._reach, fixed=True)
        kept = self._kept
        if kept is None or kept.n_found is None or not kept.fits(given):
            edge_index, shifts, row_ptr, reverse, n_found = neighbors.find_fixed(search, capacity)
            self._kept = _Kept.of(given, search, (edge_index, shifts, row_ptr, reverse), n_found)
            self._n_builds = torch.full_like(n_found, self.n_builds + 1)
            return search, self._kept.edges, n_found
        needed = self._is_stale(search, kept, given)
        neighbors.update_fixed(needed, search, kept.edges, kept.n_found)
        kept.replace(search, needed)
        self._n_builds += needed
        return search, kept.edges, kept.n_found

    def _is_stale(self, search: Search, kept: _Kept, given: Given) -> Tensor:
        """(1) bool: whether the list that is kept may lack a pair of these positions."""
        r = search.positions.to(torch.float64)
        if len(r) == 0:
            return torch.ones(1, dtype=torch.bool, device=r.device)
        change = torch.where(search.pbc[:, :, None], kept.cell - search.cell, 0.0)
        # The host may look at what lies in its own memory, and save the work for cells that change.
        reads = self.capacity is None and r.device.type == "cpu"
        indices, n_systems = kept.systems.indices, len(kept.cell)
        if kept.n_found is not None:  # it may be the rest of a batch that was refused
            indices = indices.clamp(0, n_systems - 1)
        size = r.abs().amax() + kept.positions.abs().amax() + (self.cutoff + self.skin)
        rounding = 64.0 * _EPSILON * size
        strain = torch.zeros_like(size)
        moved = r - kept.positions
        if not (search.is_open or (reads and not bool(change.any()))):
            vectors, reciprocal = reciprocal_vectors(search.cell, search.pbc)
            # G - I is the sum of the products of a reciprocal vector and the change of its vector
            strain = (reciprocal[..., None] * change[..., None, :]).sum(1).square().sum((1, 2)).sqrt()
            coordinates = dot(r[:, None, :], of_system(reciprocal, indices))
            moved = moved + (coordinates[..., None] * of_system(change, indices)).sum(1)
            skew = (norm(vectors) * norm(reciprocal)).amax(1)
            rounding = rounding * (1.0 + skew * skew)
        low, high = (per_system(moved, indices, n_systems, end) for end in ("amin", "amax"))
        farthest = per_system(norm(moved - of_system((low + high) / 2, indices)), indices, n_systems, "amax")
        # written so that NaN is stale
        is_kept = 2.0 * farthest + self.cutoff * strain + rounding <= self.skin * (1.0 - 1e-6)
        stale = ~is_kept.all() | search.pbc.ne(kept.pbc).any()
        stale |= ~search.cell.isfinite().all()  # along open axes nothing else looks at it
        if kept.n_found is not None:
            stale |= (kept.n_found < 0).any()  # refused
        batch = checks.check_batch(given.batch, r)
        for old, new in ((kept.systems.batch, batch), (kept.types, search.types)):
            if old is not None and new is not None:
                stale |= old.ne(new).any()
        return stale.reshape(1)

    def _filter(self, search: Search, edges: Edges, n_found: Tensor | None) -> tuple[Edges, Tensor | None]:
        """The edges below the cutoff, and how many: of the whole list, where that could not be made."""
        if n_found is None:
            return neighbors.filter_list(search, edges), None
        edge_index, shifts, row_ptr, reverse = edges
        has_overflow = n_found > edge_index.shape[1]
        rows = row_ptr.masked_fill(has_overflow, 0)
        fewer = neighbors.filter_list(search, (edge_index, shifts, rows, reverse), fixed=True)
        return fewer, torch.where(has_overflow | (n_found < 0), n_found, fewer[2][-1])


def _widened(cutoff: Cutoff, skin: float) -> Cutoff:
    matrix = cutoff.matrix
    if matrix is not None:
        matrix = torch.where(matrix > 0.0, matrix + skin, 0.0)
    return Cutoff(checks.check_cutoff(cutoff.largest + skin, None).largest, matrix)
