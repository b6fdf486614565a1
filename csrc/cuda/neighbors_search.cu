// The pairs of the CUDA neighbor search: counted first, then written as keys into their rows.
//
// Threads: a warp for up to 32 particles that follow each other in bin order, taken bin by bin. The runs of bins around a bin are
// spread over the lanes, 32 at a time, and their particles flattened, so that every lane holds a candidate, whatever the runs'
// lengths; each candidate is then compared with all the warp's particles of the bin, a ballot per particle.
// Bytes per particle (liquid, 40 neighbors, 260 candidates): 260 * 32 read from cache per bin and warp, 8 written when counting,
// 320 when writing. Flops: 2080 in float64 in each of the two passes.
// Deterministic: counts, and keys whose place in the row follows from the order of bins; rows are sorted afterwards.
// Source: is_edge() of csrc/core/lattice.h decides. Distances of wrapped positions only select: closer than the cutoff by the
// grid's margin is certain, farther by as much impossible, whatever is fused; in between, the definition is evaluated.
#include "launch.cuh"
#include "neighbors_memory.h"

namespace glassconv {
namespace {

constexpr int kThreads = 128;
constexpr int max_rows_per_warp = kWarp;
constexpr int64_t warps_wanted = 4096;  // enough to fill any GPU; beyond it a warp takes more rows, and gathers less often

struct SearchTask {
  NeighborParams params;
  SearchMemory memory;
  int rows_per_warp;
};

// The rows of one bin that a warp works on.
struct BinRows {
  int32_t first;  // sorted position
  int n;
  int lane;  // of the first row's tally
  const CellGrid* grid;
  double certain_sq, possible_sq;
};

// Each lane's run of bins: the particles in it and the image they are met in.
struct LaneRun {
  int32_t begin, count;
  uint32_t image;  // code of the edge's shift
  Vector3 offset;
};

// Each lane's candidate.
struct Candidate {
  Vector3 position;  // infinitely far for lanes without one
  EdgeKey key;
  int32_t itself;  // sorted position of the row that it must not be an edge of, or -1
};

__device__ LaneRun find_run(const SearchMemory& memory, const CellGrid& grid, const Surroundings& around, uint32_t index) {
  if (index >= total_runs(around)) return {0, 0, 0, {0.0, 0.0, 0.0}};
  const Run run = run_at(grid, around, index);
  int32_t begin = 0, end = 0;
#pragma unroll 1  // three at most, in all but strange cells
  for (int64_t bin = run.first; bin <= run.last; ++bin) {
    const BinRange range = memory.bins[bin];
    if (range.begin == range.end) continue;
    if (begin == end) begin = range.begin;
    end = range.end;
  }
  const Shift image = run.image;
  // The copy of the source stands at +image; receiver minus copy is the edge with shift -image.
  return {
      begin, end - begin, encode_image(grid, {-image.a, -image.b, -image.c}),
      combine(grid.lattice.vectors, static_cast<double>(image.a), static_cast<double>(image.b), static_cast<double>(image.c))};
}

// The run that lane `lane` finds its candidate in: the last that begins at or before it. `start` is where each lane's run begins,
// counted from the first lane's candidate.
__device__ int run_of(int32_t start, int lane) {
  int run = 0;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (__shfl_sync(kAllLanes, start, run + step) <= lane) run += step;
  }
  return run;
}

__device__ Candidate take_candidate(const SearchMemory& memory, const LaneRun& mine, int64_t start, bool exists,
                                    uint32_t home) {
  const int lane = threadIdx.x % kWarp;
  // of runs that begin later than this warp's candidates, or end before, only that they do matters
  const int32_t near = static_cast<int32_t>(start < INT32_MIN ? INT32_MIN : (start > kWarp ? kWarp : start));
  const int run = run_of(near, lane);
  const int32_t position = __shfl_sync(kAllLanes, mine.begin, run) + lane - __shfl_sync(kAllLanes, near, run);
  const uint32_t image = __shfl_sync(kAllLanes, mine.image, run);
  Vector3 offset = {0.0, 0.0, 0.0};
  if (__any_sync(kAllLanes, mine.image != home)) {
    offset = {__shfl_sync(kAllLanes, mine.offset.x, run), __shfl_sync(kAllLanes, mine.offset.y, run),
              __shfl_sync(kAllLanes, mine.offset.z, run)};
  }
  if (!exists) return {{HUGE_VAL, 0.0, 0.0}, 0, -1};
  const SortedParticle source = memory.sorted[position];
  return {{source.x + offset.x, source.y + offset.y, source.z + offset.z},
          make_key(source.particle, image),
          image == home ? position : -1};
}

// The definition, for the few pairs that wrapped positions cannot decide, and for all that have cutoffs of their own.
template <bool has_types>
__device__ bool is_edge_by_definition(const SearchTask& task, const CellGrid& grid, int32_t receiver, EdgeKey key) {
  const auto position = [&](int64_t i) {
    const double* r = task.params.positions + 3 * i;
    return Vector3{r[0], r[1], r[2]};
  };
  const int32_t source = source_of(key);
  const Shift shift = shift_between(decode_image(grid, image_of(key)), task.memory.wraps[receiver], task.memory.wraps[source]);
  const double cutoff_sq = has_types ? cutoff_sq_of(task.params, receiver, source) : task.params.cutoff * task.params.cutoff;
  return is_edge(grid.lattice, position(receiver), position(source), shift, cutoff_sq);
}

// Compares the warp's candidates with its rows. Each row's tally is in the lane of that row: edges so far when counting, the
// place of the next key when writing, and negative for rows that are not to be written.
template <bool is_writing, bool has_types>
__device__ void test_candidates(const SearchTask& task, const BinRows& rows, const Candidate& candidate, int64_t& tally,
                                EdgeKey* keys) {
  const int lane = threadIdx.x % kWarp;
  for (int k = 0; k < rows.n; ++k) {
    int64_t next = 0;
    if (is_writing) {
      next = __shfl_sync(kAllLanes, tally, rows.lane + k);
      if (next < 0) continue;
    }
    const SortedParticle receiver = task.memory.sorted[rows.first + k];
    const double dx = receiver.x - candidate.position.x, dy = receiver.y - candidate.position.y,
                 dz = receiver.z - candidate.position.z;
    const double distance_sq = fma(dx, dx, fma(dy, dy, dz * dz));
    bool is_hit = distance_sq < rows.possible_sq && rows.first + k != candidate.itself;
    if (is_hit && distance_sq >= rows.certain_sq) {
      is_hit = is_edge_by_definition<has_types>(task, *rows.grid, receiver.particle, candidate.key);
    }
    const unsigned hits = __ballot_sync(kAllLanes, is_hit);
    if (is_writing && is_hit) keys[next + __popc(hits & ((1u << lane) - 1u))] = candidate.key;
    if (lane == rows.lane + k) tally += __popc(hits);
  }
}

template <bool is_writing, bool has_types>
__device__ void search_bin(const SearchTask& task, const BinRows& rows, uint32_t bin, int64_t& tally, EdgeKey* keys) {
  const int lane = threadIdx.x % kWarp;
  const CellGrid& grid = *rows.grid;
  const Surroundings around = surroundings_of(grid, bin);
  const uint32_t n_runs = total_runs(around), home = encode_image(grid, {0, 0, 0});
  for (uint32_t first = 0; first < n_runs; first += kWarp) {
    const LaneRun mine = find_run(task.memory, grid, around, first + lane);
    int64_t end = mine.count;  // of this run among the particles of all
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int64_t before = __shfl_up_sync(kAllLanes, end, distance);
      if (lane >= distance) end += before;
    }
    const int64_t total = __shfl_sync(kAllLanes, end, kWarp - 1);
    for (int64_t base = 0; base < total; base += kWarp) {
      const Candidate candidate = take_candidate(task.memory, mine, end - mine.count - base, base + lane < total, home);
      test_candidates<is_writing, has_types>(task, rows, candidate, tally, keys);
    }
  }
}

// row_ptr holds lengths after counting; for writing it is complete.
template <bool is_writing, bool has_types>
__global__ void __launch_bounds__(kThreads)
    search_kernel(const __grid_constant__ SearchTask task, int64_t* row_ptr, EdgeKey* keys) {
  const SearchMemory& memory = task.memory;
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t first = warp * task.rows_per_warp, left = task.params.n_particles - first;
  const int n_rows = static_cast<int>(left < task.rows_per_warp ? left : task.rows_per_warp);
  const bool has_row = lane < n_rows;
  if (memory.status->first_refusal != 0) {
    if (!is_writing && has_row) row_ptr[first + lane] = 0;
    return;
  }
  const uint32_t bin = has_row ? memory.sorted_bin[first + lane] : 0;
  const int32_t particle = has_row ? memory.sorted[first + lane].particle : 0;
  int64_t tally = 0;
  if (is_writing && has_row) tally = row_ptr[particle + 1] <= memory.status->n_written ? row_ptr[particle] : -1;
  for (int row = 0; row < n_rows;) {
    const uint32_t bin_of_rows = __shfl_sync(kAllLanes, bin, row);
    const unsigned members = __ballot_sync(kAllLanes, has_row && lane >= row && bin == bin_of_rows);
    BinRows rows = {static_cast<int32_t>(first + row), __popc(members), row, nullptr, 0.0, 0.0};
    rows.grid = &memory.grids[memory.sorted[rows.first].system];
    const double certain = task.params.cutoff - rows.grid->margin, possible = task.params.cutoff + rows.grid->margin;
    rows.certain_sq = certain > 0.0 && !has_types ? certain * certain : 0.0;
    rows.possible_sq = possible * possible;
    search_bin<is_writing, has_types>(task, rows, bin_of_rows, tally, keys);
    row += rows.n;
  }
  if (!is_writing && has_row) row_ptr[particle] = tally;
}

template <bool is_writing>
void search(const NeighborParams& params, const SearchMemory& memory, int64_t* row_ptr, EdgeKey* keys, cudaStream_t stream) {
  SearchTask task = {params, memory, max_rows_per_warp};
  if (params.n_particles < warps_wanted * max_rows_per_warp) {
    task.rows_per_warp = static_cast<int>((params.n_particles + warps_wanted - 1) / warps_wanted);
  }
  const dim3 blocks =
      params.n_particles == 0 ? dim3(0) : blocks_for(params.n_particles, task.rows_per_warp * (kThreads / kWarp));
  launch({"search_kernel", blocks, kThreads, 0, stream},
         params.types == nullptr ? search_kernel<is_writing, false> : search_kernel<is_writing, true>, task, row_ptr, keys);
}

}  // namespace

void count_rows(const NeighborParams& params, const SearchMemory& memory, int64_t* row_ptr, cudaStream_t stream) {
  search<false>(params, memory, row_ptr, nullptr, stream);
}

void write_keys(const NeighborParams& params, const SearchMemory& memory, const NeighborOutputs& outputs, cudaStream_t stream) {
  search<true>(params, memory, outputs.row_ptr, keys_of(outputs), stream);
}

}  // namespace glassconv
