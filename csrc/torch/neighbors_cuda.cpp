#include <stdexcept>
#include <tuple>

#include "cuda_stream.h"
#include "library_cuda.h"
#include "neighbors_arguments.h"

namespace glassconv {
namespace {

at::Tensor new_workspace(const NeighborParams& params, const at::Tensor& batch) {
  return at::empty({neighbors_cuda_workspace(params.n_particles, params.n_systems)}, batch.options().dtype(at::kByte));
}

Edges neighbor_list_cuda(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc, const at::Tensor& batch,
                         double cutoff, const OptionalTensor& types, const OptionalTensor& cutoffs) {
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff, {types, cutoffs});
  const OnDevice device(positions.device());
  const NeighborParams params = arguments.params();
  try {
    const at::Tensor workspace = new_workspace(params, batch);
    const at::Tensor row_ptr = arguments.new_row_ptr();
    const int64_t n_edges =
        count_neighbors_cuda(params, row_ptr.mutable_data_ptr<int64_t>(), workspace.mutable_data_ptr(), device.stream());
    const Edges edges = arguments.new_edges(n_edges, row_ptr);
    write_neighbors_cuda(params, outputs_to(edges), n_edges, workspace.mutable_data_ptr(), device.stream());
    return edges;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

void find_fixed(const NeighborArguments& arguments, const FixedEdges& buffers, const bool* needed) {
  const OnDevice device(arguments.positions.device());
  const NeighborParams params = arguments.params();
  const auto& [edge_index, shifts, row_ptr, reverse, n_found] = buffers;
  const CapacityOutputs outputs = {outputs_to({edge_index, shifts, row_ptr, reverse}), reverse.numel(),
                                   n_found.mutable_data_ptr<int64_t>(), needed};
  try {
    const at::Tensor workspace = new_workspace(params, arguments.batch);
    find_neighbors_cuda(params, outputs, workspace.mutable_data_ptr(), device.stream());
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

FixedEdges neighbor_list_fixed_cuda(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc,
                                    const at::Tensor& batch, double cutoff, int64_t capacity, const OptionalTensor& types,
                                    const OptionalTensor& cutoffs) {
  check_capacity(capacity);
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff, {types, cutoffs});
  const FixedEdges edges = arguments.new_fixed_edges(capacity);
  find_fixed(arguments, edges, nullptr);
  return edges;
}

void neighbor_list_update_cuda(const at::Tensor& needed, const at::Tensor& positions, const at::Tensor& cell,
                               const at::Tensor& pbc, const at::Tensor& batch, double cutoff, const at::Tensor& edge_index,
                               const at::Tensor& shifts, const at::Tensor& row_ptr, const at::Tensor& reverse,
                               const at::Tensor& n_found, const OptionalTensor& types, const OptionalTensor& cutoffs) {
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff, {types, cutoffs});
  const FixedEdges buffers = {edge_index, shifts, row_ptr, reverse, n_found};
  check_buffers(needed, buffers, positions);
  mark_written(buffers);
  find_fixed(arguments, buffers, needed.const_data_ptr<bool>());
}

}  // namespace

void register_neighbors_cuda(torch::Library& m) {
  m.impl("neighbor_list", neighbor_list_cuda);
  m.impl("neighbor_list_fixed", neighbor_list_fixed_cuda);
  m.impl("neighbor_list_update", neighbor_list_update_cuda);
}

}  // namespace glassconv
