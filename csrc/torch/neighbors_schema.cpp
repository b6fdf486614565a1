#include <torch/library.h>

// Arguments are those of glassconv::NeighborParams: positions (N, 3) float32 or float64, cell (B, 3, 3) float64, pbc (B, 3) bool,
// batch (N) int64. Returns edge_index (2, E) int64, shifts (E, 3) int32, row_ptr (N + 1) int64, reverse (E) int64.
TORCH_LIBRARY_FRAGMENT(glassconv, m) {
  m.def(
      "neighbor_list(Tensor positions, Tensor cell, Tensor pbc, Tensor batch, float cutoff)"
      " -> (Tensor edge_index, Tensor shifts, Tensor row_ptr, Tensor reverse)");
}
