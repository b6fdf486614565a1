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
                         double cutoff) {
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff);
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

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> neighbor_list_fixed_cuda(
    const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc, const at::Tensor& batch, double cutoff,
    int64_t capacity) {
  check_capacity(capacity);
  const NeighborArguments arguments = check_neighbor_arguments(positions, cell, pbc, batch, cutoff);
  const OnDevice device(positions.device());
  const NeighborParams params = arguments.params();
  try {
    const at::Tensor workspace = new_workspace(params, batch), n_found = at::empty({1}, batch.options());
    const Edges edges = arguments.new_edges(capacity, arguments.new_row_ptr());
    find_neighbors_cuda(params, outputs_to(edges), capacity, n_found.mutable_data_ptr<int64_t>(), workspace.mutable_data_ptr(),
                        device.stream());
    return std::tuple_cat(edges, std::tuple(n_found));
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

}  // namespace

void register_neighbors_cuda(torch::Library& m) {
  m.impl("neighbor_list", neighbor_list_cuda);
  m.impl("neighbor_list_fixed", neighbor_list_fixed_cuda);
}

}  // namespace glassconv
