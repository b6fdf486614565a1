// The neighbor search's arguments as the core takes them, checked; the same on every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <tuple>

#include "../core/lattice.h"
#include "../core/neighbors.h"

namespace glassconv {

// edge_index (2, E), shifts (E, 3), row_ptr (N + 1), reverse (E)
using Edges = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Contiguous, positions in float64: every float32 is one, so that the decisions are those of the numbers as given.
struct NeighborArguments {
  at::Tensor positions, cell, pbc, batch;
  double cutoff;

  NeighborParams params() const {
    return {positions.const_data_ptr<double>(),
            cell.const_data_ptr<double>(),
            pbc.const_data_ptr<bool>(),
            batch.const_data_ptr<int64_t>(),
            positions.size(0),
            cell.size(0),
            cutoff};
  }

  at::Tensor new_row_ptr() const { return at::empty({positions.size(0) + 1}, batch.options()); }

  Edges new_edges(int64_t n_edges, const at::Tensor& row_ptr) const {
    return {at::empty({2, n_edges}, batch.options()), at::empty({n_edges, 3}, batch.options().dtype(at::kInt)), row_ptr,
            at::empty({n_edges}, batch.options())};
  }
};

inline NeighborOutputs outputs_to(const Edges& edges) {
  const auto& [edge_index, shifts, row_ptr, reverse] = edges;
  int64_t* source = edge_index.mutable_data_ptr<int64_t>();
  return {source, source + edge_index.size(1), shifts.mutable_data_ptr<int32_t>(), row_ptr.mutable_data_ptr<int64_t>(),
          reverse.mutable_data_ptr<int64_t>()};
}

inline void check_neighbor_tensor(const char* name, const at::Tensor& tensor, const at::Tensor& positions, at::ScalarType dtype,
                                  at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, name, ": expected ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, ": expected shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == positions.device(), name, ": expected the device of positions, ", positions.device(),
                    ", got ", tensor.device());
}

inline NeighborArguments check_neighbor_arguments(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc,
                                                  const at::Tensor& batch, double cutoff) {
  const auto dtype = positions.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "positions: expected float32 or float64, got ", dtype);
  TORCH_CHECK_VALUE(positions.dim() == 2, "positions: expected shape (N, 3), got ", positions.sizes());
  TORCH_CHECK_VALUE(cell.dim() == 3, "cell: expected shape (B, 3, 3), got ", cell.sizes());
  const int64_t n_particles = positions.size(0), n_systems = cell.size(0);
  check_neighbor_tensor("positions", positions, positions, dtype, {n_particles, 3});
  check_neighbor_tensor("cell", cell, positions, at::kDouble, {n_systems, 3, 3});
  check_neighbor_tensor("pbc", pbc, positions, at::kBool, {n_systems, 3});
  check_neighbor_tensor("batch", batch, positions, at::kLong, {n_particles});
  TORCH_CHECK_VALUE(cutoff > 0.0 && std::isfinite(cutoff), "cutoff: expected a positive finite number, got ", cutoff);
  TORCH_CHECK_VALUE(cutoff >= min_length && cutoff <= max_length, "cutoff: expected from 1e-140 to 1e140, got ", cutoff);
  return {positions.to(at::kDouble).contiguous(), cell.contiguous(), pbc.contiguous(), batch.contiguous(), cutoff};
}

inline void check_capacity(int64_t capacity) {
  TORCH_CHECK_VALUE(capacity >= 0, "capacity: expected at least 0, got ", capacity);
}

}  // namespace glassconv
