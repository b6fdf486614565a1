// The CUDA neighbor search, entry points: bins, row lengths, their sums, then keys, sorted rows, opposites.
//
// Threads: one, for the totals; one for each row that is copied. Bytes: the workspace takes about 110 for each particle and 500 for
// each system.
// Deterministic. The only wait for the GPU is in count_neighbors_cuda(), which reads the totals.
// Source: csrc/core/neighbors.h.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "launch.cuh"
#include "neighbors_memory.h"

namespace glassconv {
namespace {

// Bins are counted in 32 bits. More would take a workspace of 200 GB.
constexpr int64_t max_bins = int64_t{1} << 32;

constexpr int copy_threads = 256;

// Hands out the pieces of the workspace; without one it only adds up.
class Carver {
 public:
  explicit Carver(void* workspace) : workspace_(static_cast<unsigned char*>(workspace)) {}

  template <class T>
  T* take(int64_t n) {
    return reinterpret_cast<T*>(take_bytes(n * static_cast<int64_t>(sizeof(T))));
  }

  unsigned char* take_bytes(int64_t n) {
    unsigned char* piece = workspace_ == nullptr ? nullptr : workspace_ + bytes_;
    bytes_ += (n + 255) / 256 * 256;
    return piece;
  }

  int64_t bytes() const { return bytes_; }

 private:
  unsigned char* workspace_;
  int64_t bytes_ = 0;
};

void check_sizes(int64_t n_particles, int64_t n_systems) {
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  if (n_particles > limit) {
    throw std::invalid_argument("positions: number of particles: expected at most " + std::to_string(limit) + ", got " +
                                std::to_string(n_particles));
  }
  if (n_systems > max_bins / 8 || 2 * n_particles + 8 * n_systems > max_bins) {
    throw std::invalid_argument("positions, cell: expected at most " + std::to_string(max_bins) +
                                " for 2 particles + 8 systems, got " + std::to_string(n_particles) + " particles and " +
                                std::to_string(n_systems) + " systems");
  }
}

SearchMemory carve(int64_t n_particles, int64_t n_systems, void* workspace) {
  check_sizes(n_particles, n_systems);
  Carver carver(workspace);
  SearchMemory memory = {};
  memory.n_bins = 2 * n_particles + 8 * n_systems;
  memory.status = carver.take<SearchStatus>(1);
  memory.extents = carver.take<SystemExtent>(n_systems);
  memory.bins = carver.take<BinRange>(memory.n_bins);
  memory.zeroed_bytes = carver.bytes();
  memory.grids = carver.take<CellGrid>(n_systems);
  memory.wrapped = carver.take<Vector3>(n_particles);
  memory.wraps = carver.take<Wrap>(n_particles);
  memory.bin = carver.take<uint32_t>(n_particles);
  memory.particle = carver.take<int32_t>(n_particles);
  memory.sorted_bin = carver.take<uint32_t>(n_particles);
  memory.sorted_particle = carver.take<int32_t>(n_particles);
  memory.sorted = carver.take<SortedParticle>(n_particles);
  memory.row_ptr = carver.take<int64_t>(n_particles + 1);
  memory.primitives = {carver.take_bytes(0), 0};  // whose size takes long to find out, and is not always needed
  memory.bytes = carver.bytes();
  return memory;
}

// Of the memory that follows the rest, for the scan and the sort by turns.
size_t primitives_bytes(int64_t n_particles, int64_t n_bins) {
  const size_t scan = exclusive_scan_workspace(n_particles + 1);
  return n_particles == 0 ? scan : std::max(scan, sort_pairs_workspace(static_cast<int32_t>(n_particles), bits_of(n_bins)));
}

// What lies before the last row that ends within the capacity is written.
__device__ int64_t written_edges(const int64_t* row_ptr, int64_t n_particles, int64_t capacity) {
  int64_t fits = 0, exceeds = n_particles;
  if (row_ptr[exceeds] <= capacity) return row_ptr[exceeds];
  while (exceeds - fits > 1) {
    const int64_t middle = fits + (exceeds - fits) / 2;
    (row_ptr[middle] <= capacity ? fits : exceeds) = middle;
  }
  return row_ptr[fits];
}

__global__ void __launch_bounds__(1)
    totals_kernel(SearchStatus* status, const int64_t* row_ptr, int64_t n_particles, int64_t capacity, int64_t* n_found) {
  if (status->first_refusal == not_needed) return;  // with totals of zero
  status->n_edges = row_ptr[n_particles];
  status->n_written = written_edges(row_ptr, n_particles, capacity);
  if (n_found == nullptr) return;
  const unsigned long long refusal = status->first_refusal;
  *n_found = refusal == 0 ? status->n_edges : -1 - static_cast<int64_t>(refusal_of(refusal));
}

__global__ void __launch_bounds__(copy_threads)
    copy_rows_kernel(const __grid_constant__ SearchMemory memory, int64_t n_particles, int64_t* row_ptr) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * copy_threads + threadIdx.x;
  if (row > n_particles || memory.status->first_refusal == not_needed) return;
  row_ptr[row] = memory.row_ptr[row];
}

struct Count {
  int64_t* row_ptr;
  int64_t capacity;
  int64_t* n_found;    // or null
  const bool* needed;  // or null
};

void count(const NeighborParams& params, SearchMemory memory, const Count& to, cudaStream_t stream) {
  const int64_t n = params.n_particles;
  memory.primitives.bytes = primitives_bytes(n, memory.n_bins);
  sort_into_bins(params, memory, to.needed, stream);
  count_rows(params, memory, to.row_ptr, stream);
  exclusive_scan(to.row_ptr, n + 1, memory.primitives, stream);
  launch({"totals_kernel", dim3(1), 1, 0, stream}, totals_kernel, memory.status, static_cast<const int64_t*>(to.row_ptr), n,
         to.capacity, to.n_found);
}

template <class T>
void read(T* host, const T* device, int64_t n, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(host, device, static_cast<size_t>(n) * sizeof(T), cudaMemcpyDeviceToHost, stream),
             "reading the neighbor search");
  check_cuda(cudaStreamSynchronize(stream), "neighbor search");
}

[[noreturn]] void refuse(const NeighborParams& params, unsigned long long code, cudaStream_t stream) {
  const Refusal why = refusal_of(code);
  const int64_t index = refusal_index(code);
  RefusedValues got;
  got.n_systems = params.n_systems;
  got.n_types = params.n_types;
  switch (phase_of(why)) {
    case -1:
      read(&got.type, params.types + index, 1, stream);
      break;
    case 0:
      read(got.cell, params.cells + 9 * index, 9, stream);
      read(got.pbc, params.pbc + 3 * index, 3, stream);
      break;
    case 1:
      read(&got.system, params.batch + index, 1, stream);
      break;
    case 2:
      read(got.position, params.positions + 3 * index, 3, stream);
      break;
  }
  throw std::invalid_argument(refusal_message(why, index, got));
}

}  // namespace

int64_t neighbors_cuda_workspace(int64_t n_particles, int64_t n_systems) {
  const SearchMemory memory = carve(n_particles, n_systems, nullptr);
  return memory.bytes + static_cast<int64_t>(primitives_bytes(n_particles, memory.n_bins));
}

int64_t count_neighbors_cuda(const NeighborParams& params, int64_t* row_ptr, void* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const SearchMemory memory = carve(params.n_particles, params.n_systems, workspace);
  count(params, memory, {row_ptr, std::numeric_limits<int64_t>::max(), nullptr, nullptr}, on);
  SearchStatus status;
  read(&status, memory.status, 1, on);
  if (status.first_refusal != 0) refuse(params, status.first_refusal, on);
  return status.n_edges;
}

void write_neighbors_cuda(const NeighborParams& params, const NeighborOutputs& outputs, int64_t n_edges, void* workspace,
                          void* stream) {
  if (n_edges == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  const SearchMemory memory = carve(params.n_particles, params.n_systems, workspace);
  write_keys(params, memory, outputs, on);
  write_rows(params, memory, outputs, on);
}

void find_neighbors_cuda(const NeighborParams& params, const CapacityOutputs& outputs, void* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const SearchMemory memory = carve(params.n_particles, params.n_systems, workspace);
  const auto& [edges, capacity, n_found, needed] = outputs;
  // the scan is CUB's, which knows of no condition
  int64_t* row_ptr = needed == nullptr ? edges.row_ptr : memory.row_ptr;
  count(params, memory, {row_ptr, capacity, n_found, needed}, on);
  if (needed != nullptr) {
    launch({"copy_rows_kernel", blocks_for(params.n_particles + 1, copy_threads), copy_threads, 0, on}, copy_rows_kernel,
           memory, params.n_particles, edges.row_ptr);
  }
  write_keys(params, memory, edges, on);
  write_rows(params, memory, edges, on);
  pad_edges(memory, edges, capacity, on);
}

}  // namespace glassconv
