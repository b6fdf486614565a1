#include <torch/library.h>

// Arguments are those of glassconv::NeighborParams: positions (N, 3) float32 or float64, cell (B, 3, 3) float64, pbc (B, 3) bool,
// batch (N) int64. Returns edge_index (2, E) int64, shifts (E, 3) int32, row_ptr (N + 1) int64, reverse (E) int64.
//
// neighbor_list_fixed returns the same with E = capacity, whatever the input, and on a GPU without waiting for it. n_found (1) int64
// is the number of edges there are, and row_ptr is that of all of them. Places without an edge hold -1. When n_found exceeds the
// capacity, the edges are those of the rows that end within it, the first ones; `reverse` is -1 for edges whose opposite is not
// among them. Where waiting is no way to raise an error, n_found is negative for input that neighbor_list refuses: -1 - Refusal
// (csrc/core/neighbor_refusals.h), with row_ptr zero and no edges.
TORCH_LIBRARY_FRAGMENT(glassconv, m) {
  m.def(
      "neighbor_list(Tensor positions, Tensor cell, Tensor pbc, Tensor batch, float cutoff)"
      " -> (Tensor edge_index, Tensor shifts, Tensor row_ptr, Tensor reverse)");
  m.def(
      "neighbor_list_fixed(Tensor positions, Tensor cell, Tensor pbc, Tensor batch, float cutoff, int capacity)"
      " -> (Tensor edge_index, Tensor shifts, Tensor row_ptr, Tensor reverse, Tensor n_found)");
}
