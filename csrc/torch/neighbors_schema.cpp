#include <torch/library.h>

// Arguments are those of glassconv::NeighborParams: positions (N, 3) float32 or float64, cell (B, 3, 3) float64, pbc (B, 3) bool,
// batch (N) int64; for cutoffs of pairs, types (N) int32 and cutoffs (T, T) float64, symmetric, from 0 to `cutoff`.
// Returns edge_index (2, E) int64, shifts (E, 3) int32, row_ptr (N + 1) int64, reverse (E) int64.
//
// neighbor_list_half returns one edge of each two opposites (see HalfOutputs in csrc/core/neighbors.h), the edges out of each
// source being transpose_slots (E) int64 from transpose_ptr (N + 1) int64 on. On the CPU alone.
//
// neighbor_list_fixed returns the same with E = capacity, whatever the input, and on a GPU without waiting for it. n_found (1) int64
// is the number of edges there are, and row_ptr is that of all of them. Places without an edge hold -1. When n_found exceeds the
// capacity, the edges are those of the rows that end within it, the first ones; `reverse` is -1 for edges whose opposite is not
// among them. Where waiting is no way to raise an error, n_found is negative for input that neighbor_list refuses: -1 - Refusal
// (csrc/core/neighbor_refusals.h), with row_ptr zero and no edges.
//
// neighbor_list_update writes to its buffers what neighbor_list_fixed with their capacity returns when `needed` (1) bool holds true,
// and nothing when it holds false, on a GPU without waiting for it.
//
// neighbor_list_filter keeps, of a list made with larger cutoffs, the edges of these positions: neighbor_list's result as long as that
// list has them all. On the CPU alone.
TORCH_LIBRARY_FRAGMENT(glassconv, m) {
  m.def(
      "neighbor_list(Tensor positions, Tensor cell, Tensor pbc, Tensor batch, float cutoff, Tensor? types=None,"
      " Tensor? cutoffs=None)"
      " -> (Tensor edge_index, Tensor shifts, Tensor row_ptr, Tensor reverse)");
  m.def(
      "neighbor_list_half(Tensor positions, Tensor cell, Tensor pbc, Tensor batch, float cutoff, Tensor? types=None,"
      " Tensor? cutoffs=None)"
      " -> (Tensor edge_index, Tensor shifts, Tensor row_ptr, Tensor transpose_ptr, Tensor transpose_slots)");
  m.def(
      "neighbor_list_fixed(Tensor positions, Tensor cell, Tensor pbc, Tensor batch, float cutoff, int capacity,"
      " Tensor? types=None, Tensor? cutoffs=None)"
      " -> (Tensor edge_index, Tensor shifts, Tensor row_ptr, Tensor reverse, Tensor n_found)");
  m.def(
      "neighbor_list_update(Tensor needed, Tensor positions, Tensor cell, Tensor pbc, Tensor batch, float cutoff,"
      " Tensor(a!) edge_index, Tensor(b!) shifts, Tensor(c!) row_ptr, Tensor(d!) reverse, Tensor(e!) n_found,"
      " Tensor? types=None, Tensor? cutoffs=None) -> ()");
  m.def(
      "neighbor_list_filter(Tensor positions, Tensor cell, Tensor batch, float cutoff, Tensor edge_index, Tensor shifts,"
      " Tensor row_ptr, Tensor reverse, Tensor? types=None, Tensor? cutoffs=None)"
      " -> (Tensor edge_index, Tensor shifts, Tensor row_ptr, Tensor reverse)");
}
