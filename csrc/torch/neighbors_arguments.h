// The neighbor search's arguments as the core takes them, checked; the same on every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "../core/lattice.h"
#include "../core/neighbors.h"

namespace glassconv {

// edge_index (2, E), shifts (E, 3), row_ptr (N + 1), reverse (E)
using Edges = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// with n_found (1)
using FixedEdges = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

using OptionalTensor = std::optional<at::Tensor>;

// The arguments of pair cutoffs as an operator gets them: types (N), cutoffs (T, T), or neither.
struct GivenPairs {
  const OptionalTensor& types;
  const OptionalTensor& cutoffs;
};

// Contiguous, positions in float64: every float32 is one, so that the decisions are those of the numbers as given.
struct NeighborArguments {
  at::Tensor positions, cell, pbc, batch;
  double cutoff;
  at::Tensor types, cutoffs;  // undefined: one cutoff for all

  NeighborParams params() const {
    NeighborParams params = {positions.const_data_ptr<double>(),
                             cell.const_data_ptr<double>(),
                             pbc.const_data_ptr<bool>(),
                             batch.const_data_ptr<int64_t>(),
                             positions.size(0),
                             cell.size(0),
                             cutoff};
    if (types.defined()) {
      params.types = types.const_data_ptr<int32_t>();
      params.cutoffs = cutoffs.const_data_ptr<double>();
      params.n_types = cutoffs.size(0);
    }
    return params;
  }

  at::Tensor new_row_ptr() const { return at::empty({positions.size(0) + 1}, batch.options()); }

  Edges new_edges(int64_t n_edges, const at::Tensor& row_ptr) const {
    return {at::empty({2, n_edges}, batch.options()), at::empty({n_edges, 3}, batch.options().dtype(at::kInt)), row_ptr,
            at::empty({n_edges}, batch.options())};
  }

  FixedEdges new_fixed_edges(int64_t capacity) const {
    return std::tuple_cat(new_edges(capacity, new_row_ptr()), std::tuple(at::empty({1}, batch.options())));
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

inline void check_pairs(const GivenPairs& pairs, const at::Tensor& positions) {
  TORCH_CHECK_VALUE(pairs.types.has_value() == pairs.cutoffs.has_value(), "types, cutoffs: expected both or neither, got ",
                    pairs.types.has_value() ? "types" : "cutoffs", " alone");
  if (!pairs.types.has_value()) return;
  TORCH_CHECK_VALUE(pairs.cutoffs->dim() == 2, "cutoffs: expected shape (T, T), got ", pairs.cutoffs->sizes());
  check_neighbor_tensor("types", *pairs.types, positions, at::kInt, {positions.size(0)});
  check_neighbor_tensor("cutoffs", *pairs.cutoffs, positions, at::kDouble, {pairs.cutoffs->size(0), pairs.cutoffs->size(0)});
}

inline NeighborArguments check_neighbor_arguments(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc,
                                                  const at::Tensor& batch, double cutoff, const GivenPairs& pairs) {
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
  check_pairs(pairs, positions);
  NeighborArguments arguments = {
      positions.to(at::kDouble).contiguous(), cell.contiguous(), pbc.contiguous(), batch.contiguous(), cutoff, {}, {}};
  if (pairs.types.has_value()) arguments.types = pairs.types->contiguous(), arguments.cutoffs = pairs.cutoffs->contiguous();
  return arguments;
}

constexpr int64_t max_capacity = int64_t{1} << 48;  // 36 bytes for each still fit 64 bits, and no memory

inline void check_capacity(int64_t capacity) {
  TORCH_CHECK_VALUE(capacity >= 0, "capacity: expected at least 0, got ", capacity);
  TORCH_CHECK_VALUE(capacity <= max_capacity, "capacity: expected at most ", max_capacity, ", got ", capacity);
}

// What an update writes to: as neighbor_list_fixed made it.
inline void check_buffers(const at::Tensor& needed, const FixedEdges& buffers, const at::Tensor& positions) {
  const auto& [edge_index, shifts, row_ptr, reverse, n_found] = buffers;
  TORCH_CHECK_VALUE(edge_index.dim() == 2, "edge_index: expected shape (2, E), got ", edge_index.sizes());
  const int64_t capacity = edge_index.size(1);
  check_neighbor_tensor("needed", needed, positions, at::kBool, {1});
  const auto check = [&](const char* name, const at::Tensor& buffer, at::ScalarType dtype, at::IntArrayRef shape) {
    check_neighbor_tensor(name, buffer, positions, dtype, shape);
    TORCH_CHECK_VALUE(buffer.is_contiguous(), name, ": expected contiguous memory, got strides ", buffer.strides());
  };
  check("edge_index", edge_index, at::kLong, {2, capacity});
  check("shifts", shifts, at::kInt, {capacity, 3});
  check("row_ptr", row_ptr, at::kLong, {positions.size(0) + 1});
  check("reverse", reverse, at::kLong, {capacity});
  check("n_found", n_found, at::kLong, {1});
}

// Lets autograd find out that it has saved what is no more.
inline void mark_written(const FixedEdges& buffers) {
  std::apply([](const auto&... buffer) { (buffer.unsafeGetTensorImpl()->bump_version(), ...); }, buffers);
}

}  // namespace glassconv
