// The CPU neighbor search: a task is a run of particles in bin order. For each bin the candidates of its surroundings are
// gathered once, with their images applied; distances of wrapped positions select, and only those within rounding of the cutoff
// are decided again by the definition. An edge waits as one 64-bit key, (source, image), until its row is sorted and written.
#include "neighbors_cells.h"

#include <algorithm>

namespace glassconv {
namespace {

constexpr int64_t particles_per_task = 256;
constexpr int64_t max_reverse_tasks = 8;  // each needs a cursor for every particle

// Particles that can be neighbors of those in one bin, image offsets applied.
struct Candidates {
  std::vector<double> x, y, z, distance_sq;
  std::vector<EdgeKey> key;
  std::vector<int32_t> selected;

  void clear() { x.clear(), y.clear(), z.clear(), key.clear(); }

  void append(const SortedParticles& particles, int64_t begin, int64_t end, Vector3 offset, uint32_t image) {
    const size_t first = x.size(), size = first + static_cast<size_t>(end - begin);
    x.resize(size), y.resize(size), z.resize(size), key.resize(size);
    for (size_t c = first, p = static_cast<size_t>(begin); c < size; ++c, ++p) {
      x[c] = particles.wrapped[p].x + offset.x;
      y[c] = particles.wrapped[p].y + offset.y;
      z[c] = particles.wrapped[p].z + offset.z;
      key[c] = make_key(particles.order[p], image);
    }
  }
};

void gather(const CellGrid& grid, const SortedParticles& particles, int64_t bin, Candidates& candidates) {
  candidates.clear();
  const Surroundings around = surroundings_of(grid, bin);
  for (uint32_t index = 0; index < total_runs(around); ++index) {
    const auto [first, last, image] = run_at(grid, around, index);
    // bins of a run are contiguous, and so are their particles
    const int64_t begin = particles.bin_start[static_cast<size_t>(first)];
    const int64_t end = particles.bin_start[static_cast<size_t>(last + 1)];
    if (begin == end) continue;
    const Vector3 offset =
        combine(grid.lattice.vectors, static_cast<double>(image.a), static_cast<double>(image.b), static_cast<double>(image.c));
    // The copy of the source stands at +image; receiver minus copy is the edge with shift -image.
    candidates.append(particles, begin, end, offset, encode_image(grid, {-image.a, -image.b, -image.c}));
  }
}

// Indices of the candidates closer than the square root of `limit_sq`; their squared distances stay in `distance_sq`.
int64_t select(Candidates& candidates, Vector3 r, double limit_sq) {
  const auto n = static_cast<size_t>(checked_int32(static_cast<int64_t>(candidates.x.size()), "cutoff: candidates of one bin"));
  if (candidates.selected.size() < n) candidates.distance_sq.resize(n), candidates.selected.resize(n);
  const double* __restrict x = candidates.x.data();
  const double* __restrict y = candidates.y.data();
  const double* __restrict z = candidates.z.data();
  double* __restrict distance_sq = candidates.distance_sq.data();
  int32_t* __restrict selected = candidates.selected.data();
  for (size_t c = 0; c < n; ++c) {
    const double dx = r.x - x[c], dy = r.y - y[c], dz = r.z - z[c];
    distance_sq[c] = dx * dx + dy * dy + dz * dz;
  }
  int64_t found = 0;
  for (size_t c = 0; c < n; ++c) {
    selected[found] = static_cast<int32_t>(c);
    found += distance_sq[c] < limit_sq;
  }
  return found;
}

// Sorts one row of distinct keys. Short rows with distinct sources: the rank of a key is the number of smaller ones, which
// vectorizes and has no branches to mispredict.
void sort_row(EdgeKey* keys, int64_t n, bool sources_repeat) {
  constexpr int64_t max_ranked = 96;
  if (sources_repeat || n > max_ranked) {
    std::sort(keys, keys + n);
    return;
  }
  int32_t source[max_ranked], rank[max_ranked] = {};
  EdgeKey unsorted[max_ranked];
  for (int64_t k = 0; k < n; ++k) {
    unsorted[k] = keys[k];
    source[k] = source_of(keys[k]);
  }
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t m = 0; m < n; ++m) rank[m] += source[k] < source[m];
  }
  for (int64_t k = 0; k < n; ++k) keys[rank[k]] = unsorted[k];
}

}  // namespace

struct NeighborSearchCpu::State {
  NeighborParams params;
  Executor executor;
  SortedParticles particles;
  std::vector<std::vector<EdgeKey>> found;  // per task, rows in bin order
  std::vector<int64_t> row_ptr;

  const CellGrid& grid_of(int32_t particle) const { return particles.grids[static_cast<size_t>(params.batch[particle])]; }

  Shift shift_of(int32_t receiver, EdgeKey key) const {
    return shift_between(decode_image(grid_of(receiver), image_of(key)), particles.wraps[static_cast<size_t>(receiver)],
                         particles.wraps[static_cast<size_t>(source_of(key))]);
  }

  std::pair<int64_t, int64_t> range_of(int64_t task) const {
    return {task * particles_per_task, std::min(params.n_particles, (task + 1) * particles_per_task)};
  }

  void search(int64_t task);
  void count_rows();
  void write_rows(int64_t task, const NeighborOutputs& outputs);
  void write_reverse(int64_t begin, int64_t end, const NeighborOutputs& outputs) const;
};

void NeighborSearchCpu::State::search(int64_t task) {
  std::vector<EdgeKey>& edges = found[static_cast<size_t>(task)];
  Candidates candidates;
  int64_t gathered_bin = -1;
  double certain_sq = 0.0, possible_sq = 0.0;
  const double cutoff = params.cutoff;
  const auto [begin, end] = range_of(task);
  for (int64_t p = begin; p < end; ++p) {
    const int32_t receiver = particles.order[static_cast<size_t>(p)];
    const CellGrid& grid = grid_of(receiver);
    if (particles.bin[static_cast<size_t>(p)] != gathered_bin) {
      gathered_bin = particles.bin[static_cast<size_t>(p)];
      gather(grid, particles, gathered_bin, candidates);
      const double certain = cutoff - grid.margin, possible = cutoff + grid.margin;
      certain_sq = certain > 0.0 ? certain * certain : 0.0;
      possible_sq = possible * possible;
    }
    const int64_t n_selected = select(candidates, particles.wrapped[static_cast<size_t>(p)], possible_sq);
    const EdgeKey self = make_key(receiver, encode_image(grid, {0, 0, 0}));
    const size_t row = edges.size();
    for (int64_t s = 0; s < n_selected; ++s) {
      const auto c = static_cast<size_t>(candidates.selected[static_cast<size_t>(s)]);
      const EdgeKey key = candidates.key[c];
      if (key == self) continue;
      if (candidates.distance_sq[c] >= certain_sq &&
          !is_edge(grid.lattice, position_of(params, receiver), position_of(params, source_of(key)), shift_of(receiver, key),
                   cutoff * cutoff)) {
        continue;
      }
      edges.push_back(key);
    }
    row_ptr[static_cast<size_t>(receiver) + 1] = static_cast<int64_t>(edges.size() - row);
  }
}

void NeighborSearchCpu::State::count_rows() {
  for (size_t i = 0; i + 1 < row_ptr.size(); ++i) row_ptr[i + 1] += row_ptr[i];
}

void NeighborSearchCpu::State::write_rows(int64_t task, const NeighborOutputs& outputs) {
  EdgeKey* row = found[static_cast<size_t>(task)].data();
  const auto [begin, end] = range_of(task);
  for (int64_t p = begin; p < end; ++p) {
    const int32_t receiver = particles.order[static_cast<size_t>(p)];
    const int64_t first = row_ptr[static_cast<size_t>(receiver)];
    const int64_t n = row_ptr[static_cast<size_t>(receiver) + 1] - first;
    sort_row(row, n, grid_of(receiver).repeats_pairs);
    for (int64_t k = 0; k < n; ++k) {
      const Shift shift = shift_of(receiver, row[k]);
      outputs.source[first + k] = source_of(row[k]);
      outputs.receiver[first + k] = receiver;
      int32_t* out = outputs.shifts + 3 * (first + k);
      // in range: wraps are at most 1e9 and images 1e6
      out[0] = static_cast<int32_t>(shift.a), out[1] = static_cast<int32_t>(shift.b), out[2] = static_cast<int32_t>(shift.c);
    }
    row += n;
  }
  std::vector<EdgeKey>().swap(found[static_cast<size_t>(task)]);
}

// The opposites of the edges into receivers begin .. end - 1. Going through receivers in order meets the edges out of each
// source j in the order in which their opposites stand in row j, so one cursor for each j finds them all. Edges between the same
// two particles are sorted by shift, their opposites by the negative: backwards.
void NeighborSearchCpu::State::write_reverse(int64_t begin, int64_t end, const NeighborOutputs& outputs) const {
  std::vector<int64_t> cursor(row_ptr.begin(), row_ptr.end() - 1);
  if (begin > 0) {
    for (size_t j = 0; j < cursor.size(); ++j) {
      cursor[j] = std::lower_bound(outputs.source + row_ptr[j], outputs.source + row_ptr[j + 1], begin) - outputs.source;
    }
  }
  const int64_t last = row_ptr[static_cast<size_t>(end)];
  // Rows need not be told apart: a source that ends one row and begins the next belongs to two receivers, and each
  // of them ends its own group below because the receivers differ.
  for (int64_t edge = row_ptr[static_cast<size_t>(begin)]; edge < last;) {
    const int64_t source = outputs.source[edge], receiver = outputs.receiver[edge];
    int64_t group = 1;
    while (edge + group < last && outputs.source[edge + group] == source && outputs.receiver[edge + group] == receiver) ++group;
    int64_t& opposite = cursor[static_cast<size_t>(source)];
    for (int64_t k = 0; k < group; ++k) outputs.reverse[edge + k] = opposite + group - 1 - k;
    opposite += group;
    edge += group;
  }
}

NeighborSearchCpu::NeighborSearchCpu(const NeighborParams& params, const Executor& executor)
    : state_(std::make_unique<State>(State{params, executor, sort_particles(params, executor), {}, {}})) {
  const int64_t n_tasks = (params.n_particles + particles_per_task - 1) / particles_per_task;
  state_->found.resize(static_cast<size_t>(n_tasks));
  state_->row_ptr.assign(static_cast<size_t>(params.n_particles) + 1, 0);
  for_each_task(executor, n_tasks, [&](int64_t task) { state_->search(task); });
  state_->count_rows();
}

NeighborSearchCpu::~NeighborSearchCpu() = default;

int64_t NeighborSearchCpu::n_edges() const { return state_->row_ptr.back(); }

void NeighborSearchCpu::write(const NeighborOutputs& outputs) {
  State& state = *state_;
  std::copy(state.row_ptr.begin(), state.row_ptr.end(), outputs.row_ptr);
  for_each_task(state.executor, static_cast<int64_t>(state.found.size()),
                [&](int64_t task) { state.write_rows(task, outputs); });
  const int64_t n = state.params.n_particles;
  const int64_t n_tasks = std::clamp<int64_t>(std::min<int64_t>(state.executor.n_threads, n), 1, max_reverse_tasks);
  for_each_task(state.executor, n_tasks,
                [&](int64_t task) { state.write_reverse(n * task / n_tasks, n * (task + 1) / n_tasks, outputs); });
}

}  // namespace glassconv
