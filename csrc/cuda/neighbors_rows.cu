// Last part of the CUDA neighbor search: rows of keys sorted and written as edges, then the opposite of each edge.
//
// Threads: a warp for each row of up to 256 edges, in shared memory (by rank up to 96 edges, else bitonic); a block for each
// longer row, in shared memory up to 4096 edges, beyond in global memory. Then a warp for each row again, that finds the opposites
// of the edges from lower to higher particles by bisection of the source's row, and writes both.
// Bytes per edge: 8 of key read, 28 written, 12 of wrap gathered; then 8 read and 8 written, and for every second edge some five
// sources and two shifts of another row, from cache. No flops.
// Deterministic: the keys of a row differ.
// Source: csrc/core/{cell_grid,neighbor_search}.h.
#include <algorithm>

#include "launch.cuh"
#include "neighbors_memory.h"

namespace glassconv {
namespace {

constexpr int rows_per_block = 4, row_threads = rows_per_block * kWarp;
constexpr int64_t max_ranked = 96, max_short = 256;
constexpr int long_row_threads = 512, max_long_row_blocks = 1024;
constexpr int64_t max_shared_row = 4096;
constexpr int padding_threads = 256;

struct RowTask {
  NeighborParams params;
  SearchMemory memory;
  NeighborOutputs outputs;
  EdgeKey* keys;
};

struct Row {
  int64_t receiver, first, n;
};

// Empty for receivers beyond the last and for rows that are not written. Nothing is read when none is: row_ptr may then hold
// anything.
__device__ Row row_at(const RowTask& task, int64_t receiver) {
  const int64_t n_written = task.memory.status->n_written;
  if (receiver >= task.params.n_particles || n_written == 0) return {receiver, 0, 0};
  const int64_t first = task.outputs.row_ptr[receiver], end = task.outputs.row_ptr[receiver + 1];
  return {receiver, first, end <= n_written ? end - first : 0};
}

__device__ void write_edge(const RowTask& task, const Row& row, int64_t place, EdgeKey key) {
  const NeighborOutputs& outputs = task.outputs;
  const CellGrid& grid = task.memory.grids[task.params.batch[row.receiver]];
  const Shift shift =
      shift_between(decode_image(grid, image_of(key)), task.memory.wraps[row.receiver], task.memory.wraps[source_of(key)]);
  const int64_t edge = row.first + place;
  outputs.source[edge] = source_of(key);
  outputs.receiver[edge] = row.receiver;
  // in range: wraps are at most 1e9 and images 1e6
  outputs.shifts[3 * edge] = static_cast<int32_t>(shift.a);
  outputs.shifts[3 * edge + 1] = static_cast<int32_t>(shift.b);
  outputs.shifts[3 * edge + 2] = static_cast<int32_t>(shift.c);
}

// Who takes part in sorting a row.
struct Sorters {
  int thread, n_threads;
};

// Compares each key of one half of every group with its partner in the other half, and puts the smaller one into the lower place:
// keys beyond the last, to the next power of two, may be thought of as infinite and need not exist. Groups have 2^(log_half + 1)
// keys; partners are as far apart as half of one, or stand at places mirrored in its middle.
__device__ inline void exchange(EdgeKey* keys, int64_t n, int log_half, bool is_mirrored, Sorters sorters) {
  const int64_t half = int64_t{1} << log_half, n_pairs = (((n - 1) >> (log_half + 1)) + 1) << log_half;
  for (int64_t pair = sorters.thread; pair < n_pairs; pair += sorters.n_threads) {
    const int64_t offset = pair & (half - 1), low = 2 * pair - offset,
                  high = is_mirrored ? low + 2 * (half - offset) - 1 : low + half;
    if (high >= n) continue;
    const EdgeKey a = keys[low], b = keys[high];
    if (b < a) keys[low] = b, keys[high] = a;
  }
}

// Bitonic: sorted halves become sorted groups, from groups of two on.
template <class Barrier>
__device__ void sort_keys(EdgeKey* keys, int64_t n, Sorters sorters, Barrier barrier) {
  for (int log_half = 0; int64_t{1} << log_half < n; ++log_half) {
    for (int log_stride = log_half; log_stride >= 0; --log_stride) {
      exchange(keys, n, log_stride, log_stride == log_half, sorters);
      barrier();
    }
  }
}

__global__ void __launch_bounds__(row_threads) short_rows_kernel(const __grid_constant__ RowTask task) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  EdgeKey* keys = reinterpret_cast<EdgeKey*>(shared_memory()) + warp * max_short;
  const Row row = row_at(task, static_cast<int64_t>(blockIdx.x) * rows_per_block + warp);
  if (row.n > max_short) return;
  const int n = static_cast<int>(row.n);
  for (int k = lane; k < n; k += kWarp) keys[k] = task.keys[row.first + k];
  __syncwarp();
  if (n <= max_ranked) {
    for (int k = lane; k < n; k += kWarp) {
      const EdgeKey key = keys[k];
      int rank = 0;
      for (int other = 0; other < n; ++other) rank += keys[other] < key;
      write_edge(task, row, rank, key);
    }
    return;
  }
  sort_keys(keys, n, {lane, kWarp}, [] { __syncwarp(); });
  for (int k = lane; k < n; k += kWarp) write_edge(task, row, k, keys[k]);
}

// The block's threads: all reach every barrier.
__device__ void write_long_row(const RowTask& task, const Row& row) {
  const int thread = threadIdx.x;
  EdgeKey* keys = task.keys + row.first;
  if (row.n <= max_shared_row) {
    EdgeKey* copy = reinterpret_cast<EdgeKey*>(shared_memory());
    for (int64_t k = thread; k < row.n; k += long_row_threads) copy[k] = keys[k];
    keys = copy;
  }
  __syncthreads();
  sort_keys(keys, row.n, {thread, long_row_threads}, [] { __syncthreads(); });
  for (int64_t k = thread; k < row.n; k += long_row_threads) write_edge(task, row, k, keys[k]);
  __syncthreads();  // the next row needs the shared memory
}

// Blocks look through all rows, 32 at a time, for long ones: how many there are nobody has to know.
__global__ void __launch_bounds__(long_row_threads) long_rows_kernel(const __grid_constant__ RowTask task) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kWarp; first < task.params.n_particles;
       first += static_cast<int64_t>(gridDim.x) * kWarp) {
    unsigned long_rows = __ballot_sync(kAllLanes, row_at(task, first + lane).n > max_short);  // the same in every warp
    for (; long_rows != 0; long_rows &= long_rows - 1) write_long_row(task, row_at(task, first + __ffs(long_rows) - 1));
  }
}

// Whether an edge stands before (source, shift) in its row.
__device__ bool is_before(const NeighborOutputs& outputs, int64_t edge, int64_t source, const int32_t* shift) {
  const int64_t other = outputs.source[edge];
  if (other != source) return other < source;
  const int32_t* s = outputs.shifts + 3 * edge;
  if (s[0] != shift[0]) return s[0] < shift[0];
  if (s[1] != shift[1]) return s[1] < shift[1];
  return s[2] < shift[2];
}

__device__ int64_t opposite_of(const NeighborOutputs& outputs, int64_t edge, int64_t source, int64_t receiver) {
  const int32_t* s = outputs.shifts + 3 * edge;
  const int32_t shift[3] = {-s[0], -s[1], -s[2]};
  int64_t low = outputs.row_ptr[source], high = outputs.row_ptr[source + 1];
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (is_before(outputs, middle, receiver, shift)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The opposites of the edges of one row. Those from higher sources are written by their opposites, unless these are not written.
__device__ void write_opposites(const RowTask& task, const Row& row) {
  const NeighborOutputs& outputs = task.outputs;
  const int64_t n_written = task.memory.status->n_written, end = row.first + row.n;
  const bool all_written = n_written == task.memory.status->n_edges;
  for (int64_t edge = row.first + threadIdx.x % kWarp; edge < end; edge += kWarp) {
    const int64_t source = outputs.source[edge];
    if (source <= row.receiver) {
      const int64_t opposite = opposite_of(outputs, edge, source, row.receiver);
      outputs.reverse[edge] = opposite;
      if (source < row.receiver) outputs.reverse[opposite] = edge;
    } else if (all_written) {
      break;  // sources rise
    } else if (outputs.row_ptr[source + 1] > n_written) {
      outputs.reverse[edge] = -1;
    }
  }
}

// Rows in the order of bins: the rows that are searched for opposites are then those of the last few, in the cache.
__global__ void __launch_bounds__(row_threads) reverse_kernel(const __grid_constant__ RowTask task) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / kWarp;
  if (position >= task.params.n_particles || task.memory.status->n_written == 0) return;
  write_opposites(task, row_at(task, task.memory.sorted[position].particle));
}

__global__ void __launch_bounds__(padding_threads)
    padding_kernel(const SearchStatus* status, const __grid_constant__ NeighborOutputs outputs, int64_t capacity) {
  const int64_t edge = static_cast<int64_t>(blockIdx.x) * padding_threads + threadIdx.x;
  if (edge >= capacity || edge < status->n_written || status->first_refusal == not_needed) return;
  outputs.source[edge] = outputs.receiver[edge] = outputs.reverse[edge] = -1;
  for (int axis = 0; axis < 3; ++axis) outputs.shifts[3 * edge + axis] = -1;
}

}  // namespace

void write_rows(const NeighborParams& params, const SearchMemory& memory, const NeighborOutputs& outputs, cudaStream_t stream) {
  const RowTask task = {params, memory, outputs, keys_of(outputs)};
  const int64_t n = params.n_particles;
  constexpr size_t short_bytes = rows_per_block * max_short * sizeof(EdgeKey), long_bytes = max_shared_row * sizeof(EdgeKey);
  const int64_t long_row_blocks = (n + kWarp - 1) / kWarp;
  launch({"short_rows_kernel", blocks_for(n, rows_per_block), row_threads, short_bytes, stream}, short_rows_kernel, task);
  launch({"long_rows_kernel", dim3(static_cast<unsigned>(std::min<int64_t>(long_row_blocks, max_long_row_blocks))),
          long_row_threads, long_bytes, stream},
         long_rows_kernel, task);
  launch({"reverse_kernel", blocks_for(n, rows_per_block), row_threads, 0, stream}, reverse_kernel, task);
}

void pad_edges(const SearchMemory& memory, const NeighborOutputs& outputs, int64_t capacity, cudaStream_t stream) {
  launch({"padding_kernel", blocks_for(capacity, padding_threads), padding_threads, 0, stream}, padding_kernel, memory.status,
         outputs, capacity);
}

}  // namespace glassconv
