#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <stdexcept>
#include <tuple>

#include "../core/lattice.h"
#include "../core/neighbors.h"
#include "executor.h"

namespace glassconv {
namespace {

void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, name, ": expected shape ", expected, ", got ", tensor.sizes());
}

void check_dtype(const char* name, const at::Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == expected, name, ": expected ", expected, ", got ", tensor.scalar_type());
}

using Edges = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Edges neighbor_list_cpu(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc, const at::Tensor& batch,
                        double cutoff) {
  const auto dtype = positions.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "positions: expected float32 or float64, got ", dtype);
  check_dtype("cell", cell, at::kDouble);
  check_dtype("pbc", pbc, at::kBool);
  check_dtype("batch", batch, at::kLong);
  TORCH_CHECK_VALUE(positions.dim() == 2, "positions: expected shape (N, 3), got ", positions.sizes());
  TORCH_CHECK_VALUE(cell.dim() == 3, "cell: expected shape (B, 3, 3), got ", cell.sizes());
  const int64_t n_particles = positions.size(0), n_systems = cell.size(0);
  check_shape("positions", positions, {n_particles, 3});
  check_shape("cell", cell, {n_systems, 3, 3});
  check_shape("pbc", pbc, {n_systems, 3});
  check_shape("batch", batch, {n_particles});
  TORCH_CHECK_VALUE(cutoff > 0.0 && std::isfinite(cutoff), "cutoff: expected a positive finite number, got ", cutoff);
  TORCH_CHECK_VALUE(cutoff >= min_length && cutoff <= max_length, "cutoff: expected from 1e-140 to 1e140, got ", cutoff);

  // Every float32 is a float64: the decisions are those of the numbers as given.
  const at::Tensor r = positions.to(at::kDouble).contiguous(), cells = cell.contiguous(), periodic = pbc.contiguous(),
                   systems = batch.contiguous();
  const NeighborParams params{r.const_data_ptr<double>(),
                              cells.const_data_ptr<double>(),
                              periodic.const_data_ptr<bool>(),
                              systems.const_data_ptr<int64_t>(),
                              n_particles,
                              n_systems,
                              cutoff};
  try {
    NeighborSearchCpu search(params, at_executor());
    const int64_t n_edges = search.n_edges();
    at::Tensor edge_index = at::empty({2, n_edges}, batch.options());
    at::Tensor shifts = at::empty({n_edges, 3}, batch.options().dtype(at::kInt));
    at::Tensor row_ptr = at::empty({n_particles + 1}, batch.options());
    at::Tensor reverse = at::empty({n_edges}, batch.options());
    int64_t* source = edge_index.mutable_data_ptr<int64_t>();
    search.write({source, source + n_edges, shifts.mutable_data_ptr<int32_t>(), row_ptr.mutable_data_ptr<int64_t>(),
                  reverse.mutable_data_ptr<int64_t>()});
    return {edge_index, shifts, row_ptr, reverse};
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(glassconv, CPU, m) { m.impl("neighbor_list", neighbor_list_cpu); }

}  // namespace glassconv
