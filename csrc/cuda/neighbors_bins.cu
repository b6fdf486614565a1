// First half of the CUDA neighbor search: particles wrapped into their cells and sorted into bins.
//
// Threads: one for each system (lattice, grid), else one for each particle (its type beside the lattices).
// Bytes per particle: 24 + 8 read; 36 written while wrapping, 16 written and 48 moved while sorting (three passes over keys that
// know their bin), 72 moved into sorted order, 16 zeroed for the bins. Flops: about 60, in float64.
// Deterministic: systems are joined by maxima, bins sorted stably by the particles' indices, and of many refusals the first is kept.
// Source: csrc/core/{lattice,cell_grid,neighbor_search}.h; what the compiler fuses here moves particles by a rounding, which the
// margin of the grid covers.
#include <algorithm>

#include "launch.cuh"
#include "neighbors_memory.h"

namespace glassconv {
namespace {

constexpr int kThreads = 256;

__device__ void refuse(SearchStatus* status, Refusal why, int64_t index) {
  atomicMax(&status->first_refusal, refusal_code(why, index));
}

// Whether a refusal of an earlier phase makes this one pointless. Those of the same phase may still be coming in, and must not
// keep the first of them from being found.
__device__ bool is_refused_before(const SearchStatus* status, int phase) {
  const unsigned long long code = status->first_refusal;
  return code != 0 && phase_of_code(code) < phase;
}

// What needs nothing else to be known: whether there is anything to do, the lattices, the types.
__global__ void __launch_bounds__(kThreads) lattices_kernel(const __grid_constant__ NeighborParams params,
                                                            const __grid_constant__ SearchMemory memory, const bool* needed) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;  // of a particle, and of a system
  if (needed != nullptr && !*needed) {
    if (index == 0) memory.status->first_refusal = not_needed;
    return;
  }
  if (params.types != nullptr && index < params.n_particles) {
    const int32_t type = params.types[index];
    if (type < 0 || type >= params.n_types) refuse(memory.status, Refusal::type, index);
  }
  if (index >= params.n_systems) return;
  const int64_t system = index;
  const Lattice lattice = make_lattice(params.cells + 9 * system, params.pbc + 3 * system);
  if (lattice.is_out_of_range) {
    refuse(memory.status, Refusal::cell_out_of_range, system);
  } else if (lattice.is_singular) {
    refuse(memory.status, Refusal::cell_singular, system);
  } else {
    memory.grids[system].lattice = lattice;
  }
}

// Raises *target to the largest value of the warp's lanes when they are `together`, else to each lane's own. Reads first: few
// values are new maxima, and atomics on one address wait for each other.
__device__ void raise(unsigned long long* target, unsigned long long value, bool together) {
  if (together) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const unsigned long long other = __shfl_xor_sync(kAllLanes, value, distance);
      value = other > value ? other : value;
    }
    if (threadIdx.x % kWarp != 0) return;
  }
  if (value > *const_cast<const volatile unsigned long long*>(target)) atomicMax(target, value);
}

// Wraps one particle and measures it; false when it is refused.
__device__ bool wrap_particle(const NeighborParams& params, const SearchMemory& memory, int64_t i, Vector3* wrapped,
                              double* size) {
  const int64_t system = params.batch[i];
  if (system < 0 || system >= params.n_systems || (i > 0 && system < params.batch[i - 1])) {
    refuse(memory.status, Refusal::batch, i);
    return false;
  }
  const Vector3 r = {params.positions[3 * i], params.positions[3 * i + 1], params.positions[3 * i + 2]};
  if (!is_finite(r) || largest_component(r) > max_length) {
    refuse(memory.status, Refusal::position_out_of_range, i);
    return false;
  }
  const Lattice& lattice = memory.grids[system].lattice;
  const WrappedPosition found = wrap_position(lattice, r);
  if (found.is_too_far) {
    refuse(memory.status, Refusal::position_too_far, i);
    return false;
  }
  *wrapped = memory.wrapped[i] = found.position;
  memory.wraps[i] = found.wrap;
  *size = size_of(lattice, r, found.wrap);
  if (i == 0 || params.batch[i - 1] != system) memory.extents[system].begin = static_cast<int32_t>(i);
  if (i + 1 == params.n_particles || params.batch[i + 1] != system) memory.extents[system].end = static_cast<int32_t>(i + 1);
  return true;
}

__global__ void __launch_bounds__(kThreads)
    wrap_kernel(const __grid_constant__ NeighborParams params, const __grid_constant__ SearchMemory memory) {
  if (is_refused_before(memory.status, phase_of(Refusal::batch))) return;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  Vector3 wrapped = {0.0, 0.0, 0.0};
  double size = 0.0;
  const bool is_good = i < params.n_particles && wrap_particle(params, memory, i, &wrapped, &size);
  const int64_t system = is_good ? params.batch[i] : -1;
  const int64_t system_of_warp = __shfl_sync(kAllLanes, system, 0);
  const bool together = __all_sync(kAllLanes, system == system_of_warp || i >= params.n_particles) && system_of_warp >= 0;
  if (!together && !is_good) return;
  const int64_t joined = together ? system_of_warp : system;
  SystemExtent& extent = memory.extents[joined];
  const Lattice& lattice = memory.grids[joined].lattice;
  raise(&extent.size, is_good ? ordered_code(size) : 0, together);
  for (int axis = 0; axis < 3; ++axis) {
    if (lattice.periodic[axis]) continue;
    const double fractional = dot(wrapped, lattice.reciprocal[axis]);
    raise(&extent.minus_low[axis], is_good ? ordered_code(-fractional) : 0, together);
    raise(&extent.high[axis], is_good ? ordered_code(fractional) : 0, together);
  }
}

__global__ void __launch_bounds__(kThreads)
    grids_kernel(const __grid_constant__ NeighborParams params, const __grid_constant__ SearchMemory memory) {
  const int64_t system = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (system >= params.n_systems || is_refused_before(memory.status, phase_of(Refusal::too_many_images))) return;
  const SystemExtent& found = memory.extents[system];
  if (found.end == found.begin) return;
  const Lattice lattice = memory.grids[system].lattice;
  Extent extent;
  extent.size = ordered_value(found.size);
  for (int axis = 0; axis < 3; ++axis) {
    if (lattice.periodic[axis]) continue;
    extent.low[axis] = -ordered_value(found.minus_low[axis]);
    extent.high[axis] = ordered_value(found.high[axis]);
  }
  CellGrid grid = make_grid(lattice, extent, params.cutoff, found.end - found.begin);
  if (has_too_many_images(grid)) refuse(memory.status, Refusal::too_many_images, found.begin);
  // as if every system before had all the bins it may have: known without asking any other
  grid.first_bin = 2 * static_cast<int64_t>(found.begin) + 8 * system;
  memory.grids[system] = grid;
}

__global__ void __launch_bounds__(kThreads)
    bins_kernel(const __grid_constant__ NeighborParams params, const __grid_constant__ SearchMemory memory) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= params.n_particles) return;
  const bool is_refused = memory.status->first_refusal != 0;
  memory.bin[i] = is_refused ? 0 : static_cast<uint32_t>(bin_of(memory.grids[params.batch[i]], memory.wrapped[i]));
  memory.particle[i] = static_cast<int32_t>(i);
}

__global__ void __launch_bounds__(kThreads)
    reorder_kernel(const __grid_constant__ NeighborParams params, const __grid_constant__ SearchMemory memory) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= params.n_particles || memory.status->first_refusal != 0) return;
  const int32_t particle = memory.sorted_particle[p];
  const Vector3 r = memory.wrapped[particle];
  memory.sorted[p] = {r.x, r.y, r.z, particle, static_cast<int32_t>(params.batch[particle])};
  const uint32_t bin = memory.sorted_bin[p];
  if (p == 0 || memory.sorted_bin[p - 1] != bin) memory.bins[bin].begin = static_cast<int32_t>(p);
  if (p + 1 == params.n_particles || memory.sorted_bin[p + 1] != bin) memory.bins[bin].end = static_cast<int32_t>(p + 1);
}

}  // namespace

void sort_into_bins(const NeighborParams& params, const SearchMemory& memory, const bool* needed, cudaStream_t stream) {
  const int64_t n = params.n_particles, n_types = params.types == nullptr ? 0 : n;
  const dim3 systems = blocks_for(params.n_systems, kThreads), particles = blocks_for(n, kThreads);
  const dim3 first = blocks_for(std::max({params.n_systems, n_types, int64_t{needed != nullptr}}), kThreads);
  check_cuda(cudaMemsetAsync(memory.status, 0, static_cast<size_t>(memory.zeroed_bytes), stream), "clearing the workspace");
  launch({"lattices_kernel", first, kThreads, 0, stream}, lattices_kernel, params, memory, needed);
  launch({"wrap_kernel", particles, kThreads, 0, stream}, wrap_kernel, params, memory);
  launch({"grids_kernel", systems, kThreads, 0, stream}, grids_kernel, params, memory);
  launch({"bins_kernel", particles, kThreads, 0, stream}, bins_kernel, params, memory);
  if (n > 0) {
    sort_pairs({memory.bin, memory.particle, memory.sorted_bin, memory.sorted_particle}, static_cast<int32_t>(n),
               bits_of(memory.n_bins), memory.primitives, stream);
  }
  launch({"reorder_kernel", particles, kThreads, 0, stream}, reorder_kernel, params, memory);
}

}  // namespace glassconv
