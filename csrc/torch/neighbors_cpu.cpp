#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "executor.h"
#include "neighbors_arguments.h"

namespace glassconv {
namespace {

Edges neighbor_list_cpu(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc, const at::Tensor& batch,
                        double cutoff) {
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff);
  try {
    NeighborSearchCpu search(arguments.params(), at_executor());
    Edges edges = arguments.new_edges(search.n_edges(), arguments.new_row_ptr());
    search.write(outputs_to(edges));
    return edges;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> neighbor_list_fixed_cpu(
    const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc, const at::Tensor& batch, double cutoff,
    int64_t capacity) {
  check_capacity(capacity);
  const auto [edge_index, shifts, row_ptr, reverse] = neighbor_list_cpu(positions, cell, pbc, batch, cutoff);
  const int64_t* rows = row_ptr.const_data_ptr<int64_t>();
  // the rows that fit end here
  const int64_t n_written = *(std::upper_bound(rows, rows + row_ptr.numel(), capacity) - 1);
  const auto fixed = [&](const at::Tensor& all, int64_t axis, at::IntArrayRef shape) {
    at::Tensor padded = at::full(shape, -1, all.options());
    padded.narrow(axis, 0, n_written).copy_(all.narrow(axis, 0, n_written));
    return padded;
  };
  at::Tensor opposites = fixed(reverse, 0, {capacity});
  int64_t* opposite = opposites.mutable_data_ptr<int64_t>();
  std::replace_if(opposite, opposite + n_written, [&](int64_t edge) { return edge >= n_written; }, int64_t{-1});
  return {fixed(edge_index, 1, {2, capacity}), fixed(shifts, 0, {capacity, 3}), row_ptr, opposites,
          at::full({1}, reverse.numel(), batch.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(glassconv, CPU, m) {
  m.impl("neighbor_list", neighbor_list_cpu);
  m.impl("neighbor_list_fixed", neighbor_list_fixed_cpu);
}

}  // namespace glassconv
