#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <tuple>

#include "../core/neighbor_refusals.h"
#include "../cpu/scratch.h"
#include "executor.h"
#include "neighbors_arguments.h"

namespace glassconv {
namespace {

// On this device the values of types and cutoffs can be looked at before anything is done with them.
NeighborParams checked_params(const NeighborArguments& arguments) {
  const NeighborParams params = arguments.params();
  check_types(params);
  const int64_t n = params.n_types;
  for (int64_t k = 0; k < n * n; ++k) {
    const int64_t a = k / n, b = k % n;
    const double cutoff = params.cutoffs[k];
    TORCH_CHECK_VALUE(cutoff >= 0.0 && cutoff <= params.cutoff, "cutoffs: expected from 0 to ", params.cutoff, ", got ", cutoff,
                      " for types ", a, " and ", b);
    TORCH_CHECK_VALUE(cutoff == params.cutoffs[b * n + a], "cutoffs: expected a symmetric matrix, got ", cutoff, " and ",
                      params.cutoffs[b * n + a], " for types ", a, " and ", b);
  }
  return params;
}

// Runs body(), with the core's errors as torch's.
template <class Body>
auto with_value_errors(Body&& body) {
  try {
    return body();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  } catch (const std::bad_alloc&) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "glassconv: not enough memory for the edges of this neighbor list");
  }
}

at::Tensor new_large(at::IntArrayRef shape, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(shape)) * options.dtype().itemsize();
  if (bytes < min_large_block) return at::empty(shape, options);
  return at::from_blob(allocate_block(bytes), shape, &free_block, options);
}

Edges new_large_edges(const NeighborArguments& arguments, int64_t n_edges, const at::Tensor& row_ptr) {
  const auto options = arguments.batch.options();
  return {new_large({2, n_edges}, options), new_large({n_edges, 3}, options.dtype(at::kInt)), row_ptr,
          new_large({n_edges}, options)};
}

Edges neighbor_list_cpu(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc, const at::Tensor& batch,
                        double cutoff, const OptionalTensor& types, const OptionalTensor& cutoffs) {
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff, {types, cutoffs});
  return with_value_errors([&] {
    NeighborSearchCpu search(checked_params(arguments), at_executor());
    Edges edges = new_large_edges(arguments, search.n_edges(), arguments.new_row_ptr());
    search.write(outputs_to(edges));
    return edges;
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> neighbor_list_half_cpu(
    const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc, const at::Tensor& batch, double cutoff,
    const OptionalTensor& types, const OptionalTensor& cutoffs) {
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff, {types, cutoffs});
  return with_value_errors([&] {
    NeighborSearchCpu search(checked_params(arguments), at_executor());
    const auto [edge_index, shifts, row_ptr, slots] = new_large_edges(arguments, search.n_edges() / 2, arguments.new_row_ptr());
    const at::Tensor transpose_ptr = arguments.new_row_ptr();
    int64_t* source = edge_index.mutable_data_ptr<int64_t>();
    search.write_half({source, source + edge_index.size(1), shifts.mutable_data_ptr<int32_t>(),
                       row_ptr.mutable_data_ptr<int64_t>(), transpose_ptr.mutable_data_ptr<int64_t>(),
                       slots.mutable_data_ptr<int64_t>()});
    return std::tuple(edge_index, shifts, row_ptr, transpose_ptr, slots);
  });
}

// Of more edges than `to` has room for: the rows that fit. Returns the number of edges in them.
int64_t write_what_fits(NeighborSearchCpu& search, const NeighborArguments& arguments, const Edges& to) {
  const auto& [edge_index, shifts, row_ptr, reverse] = to;
  const Edges all = new_large_edges(arguments, search.n_edges(), row_ptr);
  search.write(outputs_to(all));
  const int64_t* rows = row_ptr.const_data_ptr<int64_t>();
  const int64_t n_written = *(std::upper_bound(rows, rows + row_ptr.numel(), reverse.numel()) - 1);
  edge_index.narrow(1, 0, n_written).copy_(std::get<0>(all).narrow(1, 0, n_written));
  shifts.narrow(0, 0, n_written).copy_(std::get<1>(all).narrow(0, 0, n_written));
  reverse.narrow(0, 0, n_written).copy_(std::get<3>(all).narrow(0, 0, n_written));
  int64_t* opposite = reverse.mutable_data_ptr<int64_t>();
  std::replace_if(opposite, opposite + n_written, [&](int64_t edge) { return edge >= n_written; }, int64_t{-1});
  return n_written;
}

// Buffers are written to only when there is no error.
void find_fixed(const NeighborArguments& arguments, const FixedEdges& buffers) {
  const auto& [edge_index, shifts, row_ptr, reverse, n_found] = buffers;
  const Edges to = {edge_index, shifts, row_ptr, reverse};
  const int64_t capacity = reverse.numel();
  with_value_errors([&] {
    NeighborSearchCpu search(checked_params(arguments), at_executor());
    int64_t n_written = search.n_edges();
    n_found.fill_(n_written);
    if (n_written <= capacity) {
      search.write(outputs_to(to));
    } else {
      n_written = write_what_fits(search, arguments, to);
    }
    const int64_t n_left = capacity - n_written;
    edge_index.narrow(1, n_written, n_left).fill_(-1);
    shifts.narrow(0, n_written, n_left).fill_(-1);
    reverse.narrow(0, n_written, n_left).fill_(-1);
  });
}

FixedEdges neighbor_list_fixed_cpu(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc,
                                   const at::Tensor& batch, double cutoff, int64_t capacity, const OptionalTensor& types,
                                   const OptionalTensor& cutoffs) {
  check_capacity(capacity);
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff, {types, cutoffs});
  return with_value_errors([&] {
    const FixedEdges edges = std::tuple_cat(new_large_edges(arguments, capacity, arguments.new_row_ptr()),
                                            std::tuple(at::empty({1}, batch.options())));
    find_fixed(arguments, edges);
    return edges;
  });
}

void neighbor_list_update_cpu(const at::Tensor& needed, const at::Tensor& positions, const at::Tensor& cell,
                              const at::Tensor& pbc, const at::Tensor& batch, double cutoff, const at::Tensor& edge_index,
                              const at::Tensor& shifts, const at::Tensor& row_ptr, const at::Tensor& reverse,
                              const at::Tensor& n_found, const OptionalTensor& types, const OptionalTensor& cutoffs) {
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff, {types, cutoffs});
  const FixedEdges buffers = {edge_index, shifts, row_ptr, reverse, n_found};
  check_buffers(needed, buffers, positions);
  if (!*needed.const_data_ptr<bool>()) return;
  mark_written(buffers);
  find_fixed(arguments, buffers);
}

Edges neighbor_list_filter_cpu(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& batch, double cutoff,
                               const at::Tensor& edge_index, const at::Tensor& shifts, const at::Tensor& row_ptr,
                               const at::Tensor& reverse, const OptionalTensor& types, const OptionalTensor& cutoffs) {
  const at::Tensor no_pbc = at::zeros({cell.size(0), 3}, cell.options().dtype(at::kBool));
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, no_pbc, batch, cutoff, {types, cutoffs});
  TORCH_CHECK_VALUE(edge_index.dim() == 2, "edge_index: expected shape (2, E), got ", edge_index.sizes());
  const int64_t n_edges = edge_index.size(1);
  check_neighbor_tensor("edge_index", edge_index, positions, at::kLong, {2, n_edges});
  check_neighbor_tensor("shifts", shifts, positions, at::kInt, {n_edges, 3});
  check_neighbor_tensor("row_ptr", row_ptr, positions, at::kLong, {positions.size(0) + 1});
  check_neighbor_tensor("reverse", reverse, positions, at::kLong, {n_edges});
  const at::Tensor source = edge_index.select(0, 0).contiguous(), all_shifts = shifts.contiguous(), rows = row_ptr.contiguous(),
                   opposite = reverse.contiguous();
  return with_value_errors([&] {
    NeighborFilterCpu filter(checked_params(arguments),
                             {source.const_data_ptr<int64_t>(), all_shifts.const_data_ptr<int32_t>(),
                              rows.const_data_ptr<int64_t>(), opposite.const_data_ptr<int64_t>(), n_edges},
                             at_executor());
    Edges edges = new_large_edges(arguments, filter.n_edges(), arguments.new_row_ptr());
    filter.write(outputs_to(edges));
    return edges;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(glassconv, CPU, m) {
  m.impl("neighbor_list", neighbor_list_cpu);
  m.impl("neighbor_list_half", neighbor_list_half_cpu);
  m.impl("neighbor_list_fixed", neighbor_list_fixed_cpu);
  m.impl("neighbor_list_update", neighbor_list_update_cpu);
  m.impl("neighbor_list_filter", neighbor_list_filter_cpu);
}

}  // namespace glassconv
