// The CPU neighbor search. Particles are sorted into bins (neighbors_cells.h) and numbered in that order: slots. For each bin the
// candidates of its surroundings are gathered (neighbors_candidates.h), and compared with each particle in it. They are in the
// order of their slots, and so is a row, at first; the rank of each edge tells where it stands in the row as it is sorted in the
// end. Each edge learns the rank of its opposite as soon as the later of the two rows is there, while both are near. Once all rows
// are counted they are written, in the order of particles.
#include <algorithm>
#include <numeric>

#include "neighbors_candidates.h"

namespace glassconv {
namespace {

constexpr int64_t slots_per_task = 512;
constexpr int64_t ahead = 8;  // rows that are fetched before they are written: for neighbors among particles they lie far apart
constexpr int64_t max_ranked = 512;  // longer lists are sorted by comparison

// Memory for the rows, a block at a time.
class RowPool {
 public:
  explicit RowPool(int64_t n_rows) : next_slab_(std::clamp(128 * n_rows, min_slab, max_slab)) {}

  int32_t* take(int64_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (left_ < n) {
      left_ = std::max(n, next_slab_);
      next_slab_ = std::min(2 * next_slab_, max_slab);
      slabs_.emplace_back(static_cast<size_t>(left_) * sizeof(int32_t), 1);
      slab_ = slabs_.back().take<int32_t>(static_cast<size_t>(left_)).data();
    }
    left_ -= n;
    return slab_ + left_;
  }

 private:
  static constexpr int64_t min_slab = int64_t{1} << 14, max_slab = int64_t{1} << 23;
  std::mutex mutex_;
  std::vector<Workspace> slabs_;
  int32_t* slab_ = nullptr;
  int64_t left_ = 0, next_slab_;
};

// One list after the other.
class ListWriter {
 public:
  explicit ListWriter(RowPool& pool) : pool_(pool) {}

  // Room for n numbers, and for candidate_block more that get lost with the next call.
  int32_t* take(int64_t n) {
    if (left_ < n + candidate_block) {
      left_ = std::max(n + candidate_block, block);
      next_ = pool_.take(left_);
    }
    int32_t* const list = next_;
    next_ += n, left_ -= n;
    return list;
  }

 private:
  static constexpr int64_t block = int64_t{1} << 14;
  RowPool& pool_;
  int32_t* next_ = nullptr;
  int64_t left_ = 0;
};

// Ranks of keys, all different. `keys` and `rank` have room for candidate_block more; the keys are lost.
template <class Key>
void find_ranks(RankKeys<Key> kernel, std::vector<Key>& keys, int64_t n, int32_t* rank) {
  if (n <= max_ranked) return kernel(keys.data(), n, rank);
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t u, int32_t v) { return keys[static_cast<size_t>(u)] < keys[static_cast<size_t>(v)]; });
  for (size_t k = 0; k < order.size(); ++k) rank[order[k]] = static_cast<int32_t>(k);
}

// The edges of one receiver while they are looked for.
class FoundEdges {
 public:
  // Room for n and candidate_block more.
  void reserve(int64_t n) {
    const auto room = static_cast<size_t>(n + candidate_block);
    if (slot_.size() >= room) return;
    slot_.resize(room), particle_.resize(room), image_.resize(room), key_.resize(room), rank_.resize(room);
  }

  RowArrays arrays() { return {slot_.data(), particle_.data(), image_.data()}; }

  // Leaves those for which is_wanted(slot, image).
  template <class Wanted>
  int64_t keep(int64_t n, Wanted&& is_wanted) {
    size_t kept = 0;
    for (size_t k = 0; k < static_cast<size_t>(n); ++k) {
      if (!is_wanted(slot_[k], image_[k])) continue;
      slot_[kept] = slot_[k], particle_[kept] = particle_[k], image_[kept] = image_[k];
      ++kept;
    }
    return static_cast<int64_t>(kept);
  }

  // By slot and image, where a slot can be met in several.
  void sort(int64_t n) {
    find_edge_ranks(n, slot_);
    permute(n, slot_), permute(n, particle_), permute(n, image_);
  }

  // Writes the row but for the opposites. Sources can repeat themselves only where there are images.
  Row write(int64_t n, int32_t receiver, bool has_images, bool sources_repeat, ListWriter& lists) {
    Row row = {lists.take((has_images ? 4 : 3) * n), static_cast<int32_t>(n), 0, 0, has_images};
    for (size_t k = 0; k < static_cast<size_t>(n); ++k) row.n_lower += particle_[k] < receiver;
    std::copy_n(slot_.data(), n, row.source());
    if (sources_repeat) {
      row.n_itself = static_cast<int32_t>(std::count(particle_.begin(), particle_.begin() + n, receiver));
      find_edge_ranks(n, particle_);
      std::copy_n(rank_.data(), n, row.rank());
    } else {
      find_ranks(row_kernels().rank_sources, particle_, n, row.rank());
    }
    if (has_images) std::copy_n(image_.data(), n, row.image());  // which the ranks may have run over
    return row;
  }

 private:
  void find_edge_ranks(int64_t n, const std::vector<int32_t>& source) {
    for (size_t k = 0; k < static_cast<size_t>(n); ++k) key_[k] = static_cast<int64_t>(make_key(source[k], image_[k]));
    find_ranks(row_kernels().rank_edges, key_, n, rank_.data());
  }

  template <class T>
  void permute(int64_t n, std::vector<T>& values) {
    const std::vector<T> unsorted(values.begin(), values.begin() + n);
    for (size_t k = 0; k < unsorted.size(); ++k) values[static_cast<size_t>(rank_[k])] = unsorted[k];
  }

  std::vector<int32_t> slot_, particle_, rank_;
  std::vector<uint32_t> image_;
  std::vector<int64_t> key_;
};

void prefetch(const int32_t* list, int64_t n) {
  constexpr int64_t line = 16;
  for (int64_t k = 0; k < n + line - 1; k += line) __builtin_prefetch(list + k);
}

// How many sources from k on are the same.
int32_t count_equal(const int32_t* sources, int32_t k, int32_t n) {
  int32_t last = k + 1;
  while (last < n && sources[last] == sources[k]) ++last;
  return last - k;
}

// Of `group` edges from place k on in one row, and their opposites from another place on in another: backwards.
void exchange_ranks(const Row& row, int32_t k, const Row& other, int32_t opposite, int32_t group) {
  for (int32_t m = 0; m < group; ++m) {
    const int32_t at = opposite + group - 1 - m;
    row.opposite_rank()[k + m] = other.rank()[at];
    other.opposite_rank()[at] = row.rank()[k + m];
  }
}

void write_shift(Shift shift, int32_t* to) {
  // in range: wraps are at most 1e9 and images 1e6
  to[0] = static_cast<int32_t>(shift.a), to[1] = static_cast<int32_t>(shift.b), to[2] = static_cast<int32_t>(shift.c);
}

// What a half list keeps of a row as it is sorted: sources of a lower index, and the second half of the receiver's own images.
struct HalfRow {
  int32_t n_lower, n_itself;

  bool keeps(int32_t rank) const { return rank < n_lower || (rank >= n_lower + n_itself / 2 && rank < n_lower + n_itself); }
  // Of an edge among those that are kept, and among the others.
  int32_t place(int32_t rank) const { return rank < n_lower ? rank : rank - n_itself / 2; }
  int32_t place_dropped(int32_t rank) const {
    return rank < n_lower + n_itself ? rank - n_lower : rank - n_lower - n_itself / 2;
  }
};

}  // namespace

struct NeighborSearchCpu::State {
  NeighborParams params;
  Executor executor;
  SortedParticles particles;
  RowPool pool;
  Workspace memory;
  std::span<Row> rows;            // by slot
  std::span<int32_t> next;        // of each slot, see pair_up()
  std::span<int64_t> first_edge;  // of the row of each slot, in the output
  std::span<int64_t> row_ptr;

  State(const NeighborParams& to_search, const Executor& threads)
      : params(to_search), executor(threads), particles(sort_particles(params, executor)), pool(params.n_particles) {
    const auto n = static_cast<size_t>(params.n_particles);
    memory = Workspace(n * (sizeof(Row) + sizeof(int32_t) + sizeof(int64_t)) + (n + 1) * sizeof(int64_t), 4);
    rows = memory.take<Row>(n), next = memory.take<int32_t>(n), first_edge = memory.take<int64_t>(n),
    row_ptr = memory.take<int64_t>(n + 1);
  }

  // task(first, last + 1), of slots or of particles
  template <class Task>
  void for_each_part(int64_t n_parts, Task&& task) const {
    const int64_t n = params.n_particles;
    for_each_task(executor, n_parts, [&](int64_t part) { task(n * part / n_parts, n * (part + 1) / n_parts); });
  }

  int64_t n_parts() const { return (params.n_particles + slots_per_task - 1) / slots_per_task; }

  int32_t slot_at(int64_t particle) const { return particles.slot_of[static_cast<size_t>(particle)]; }
  int32_t particle_at(int64_t slot) const { return particles.particle[static_cast<size_t>(slot)]; }

  const CellGrid& grid_at(int64_t slot) const { return particles.grids[static_cast<size_t>(params.batch[particle_at(slot)])]; }

  // Of an edge between two slots.
  Shift shift_of(int64_t receiver, int64_t source, Shift image) const {
    return shift_between(image, particles.wraps[static_cast<size_t>(receiver)], particles.wraps[static_cast<size_t>(source)]);
  }

  void search(int64_t begin, int64_t end);
  bool is_edge_by_definition(const CellGrid& grid, int64_t receiver, int64_t source, Shift image) const;
  void pair_up(int64_t slot, int64_t begin, bool sources_repeat);
  void pair_up_before(int64_t begin, int64_t end) const;
  void find_places(const int64_t* ptr);
  Shift shift_at(int64_t slot, const Row& row, int32_t k) const;
  const Row& fetch_row(int64_t particle, int64_t end) const;
  void write(int64_t begin, int64_t end, const NeighborOutputs& outputs) const;
  void write_shifts(int64_t slot, int32_t* shifts) const;
  void count_half(int64_t begin, int64_t end, const HalfOutputs& outputs) const;
  void write_half(int64_t begin, int64_t end, const HalfOutputs& outputs) const;
};

bool NeighborSearchCpu::State::is_edge_by_definition(const CellGrid& grid, int64_t receiver, int64_t source,
                                                     Shift image) const {
  const int32_t i = particle_at(receiver), j = particle_at(source);
  return is_edge(grid.lattice, position_of(params, i), position_of(params, j), shift_of(receiver, source, image),
                 cutoff_sq_of(params, i, j));
}

void NeighborSearchCpu::State::search(int64_t begin, int64_t end) {
  ListWriter lists(pool);
  Candidates candidates(particles, params.cutoff);
  FoundEdges found;
  const CellGrid* grid = nullptr;
  int64_t gathered_bin = -1;
  for (int64_t slot = begin; slot < end; ++slot) {
    if (const int64_t bin = particles.bin[static_cast<size_t>(slot)]; bin != gathered_bin) {
      gathered_bin = bin;
      grid = &grid_at(slot);
      candidates.gather(*grid, bin);
      found.reserve(candidates.size());
    }
    const bool has_images = !candidates.are_home();
    bool is_certain = false;
    int64_t n = candidates.select(slot, found.arrays(), &is_certain);
    if (!is_certain || params.types != nullptr) {
      n = found.keep(n, [&](int32_t source, uint32_t image) {
        return is_edge_by_definition(*grid, slot, source, has_images ? decode_image(*grid, image) : Shift{0, 0, 0});
      });
    }
    if (grid->repeats_pairs) found.sort(n);
    const Row row = found.write(n, particle_at(slot), has_images, grid->repeats_pairs, lists);
    rows[static_cast<size_t>(slot)] = row;
    pair_up(slot, begin, grid->repeats_pairs);
  }
}

// The row of a slot, and those of its sources that lie before it, from slot `begin` on: tells each edge the rank of its opposite.
// Going through the slots in order meets the edges out of each in the order in which their opposites stand in its row; `next` is
// where it has come to there. Edges between the same two particles are sorted by shift, their opposites by the negative: backwards.
void NeighborSearchCpu::State::pair_up(int64_t slot, int64_t begin, bool sources_repeat) {
  const Row& row = rows[static_cast<size_t>(slot)];
  const int32_t *const sources = row.source(), *const ranks = row.rank();
  int32_t* const opposite_ranks = row.opposite_rank();
  int32_t k = 0;
  while (k < row.n && sources[k] < begin) ++k;
  if (!sources_repeat) {
    for (; k < row.n && sources[k] < slot; ++k) {
      const Row& other = rows[static_cast<size_t>(sources[k])];
      const int32_t opposite = next[static_cast<size_t>(sources[k])]++;
      opposite_ranks[k] = other.rank()[opposite];
      other.opposite_rank()[opposite] = ranks[k];
    }
  } else {
    for (int32_t group; k < row.n && sources[k] <= slot; k += group) {
      group = count_equal(sources, k, row.n);
      int32_t& opposite = sources[k] < slot ? next[static_cast<size_t>(sources[k])] : k;
      exchange_ranks(row, k, rows[static_cast<size_t>(sources[k])], opposite, group);
      if (sources[k] < slot) opposite += group;
    }
  }
  next[static_cast<size_t>(slot)] = k;
}

// The same for the sources before slot `begin`, which other threads have searched.
void NeighborSearchCpu::State::pair_up_before(int64_t begin, int64_t end) const {
  for (int64_t slot = begin; slot < end; ++slot) {
    const Row& row = rows[static_cast<size_t>(slot)];
    const int32_t* const sources = row.source();
    for (int32_t k = 0, group; k < row.n && sources[k] < begin; k += group) {
      group = count_equal(sources, k, row.n);
      const Row& other = rows[static_cast<size_t>(sources[k])];
      const auto opposite = std::lower_bound(other.source(), other.source() + other.n, slot) - other.source();
      exchange_ranks(row, k, other, static_cast<int32_t>(opposite), group);
    }
  }
}

// `ptr`: where the rows of particles begin.
void NeighborSearchCpu::State::find_places(const int64_t* ptr) {
  for_each_part(n_parts(), [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) first_edge[static_cast<size_t>(slot)] = ptr[particle_at(slot)];
  });
}

// Of edge k of a row.
Shift NeighborSearchCpu::State::shift_at(int64_t slot, const Row& row, int32_t k) const {
  const Shift home = {0, 0, 0};
  if (!row.has_images && !particles.has_wraps) return home;
  return shift_of(slot, row.source()[k], row.has_images ? decode_image(grid_at(slot), row.image()[k]) : home);
}

void NeighborSearchCpu::State::write_shifts(int64_t slot, int32_t* shifts) const {
  const Row& row = rows[static_cast<size_t>(slot)];
  if (!row.has_images && !particles.has_wraps) {
    std::fill_n(shifts, 3 * static_cast<int64_t>(row.n), 0);
    return;
  }
  if (!particles.has_wraps) {
    const CellGrid& grid = grid_at(slot);
    ImageFields fields;
    for (int axis = 0; axis < 3; ++axis) {
      fields.bits[axis] = grid.image_bits[axis], fields.home[axis] = static_cast<int32_t>(grid.n_images[axis]);
    }
    row_kernels().write_images(row, fields, shifts);
    return;
  }
  for (int32_t k = 0; k < row.n; ++k) write_shift(shift_at(slot, row, k), shifts + 3 * static_cast<int64_t>(row.rank()[k]));
}

// The row of the particle that follows some others, its data fetched, and that of a later one on its way.
const Row& NeighborSearchCpu::State::fetch_row(int64_t particle, int64_t end) const {
  const auto row_of = [&](int64_t i) { return &rows[static_cast<size_t>(slot_at(i))]; };
  if (particle + 2 * ahead < end) __builtin_prefetch(row_of(particle + 2 * ahead));
  if (particle + ahead < end) prefetch(row_of(particle + ahead)->list, 3 * row_of(particle + ahead)->n);
  return *row_of(particle);
}

// Of particles begin .. end - 1: in the order of the output, which is large, and whose memory is new.
void NeighborSearchCpu::State::write(int64_t begin, int64_t end, const NeighborOutputs& outputs) const {
  const WriteRow write_row = row_kernels().write_row;
  for (int64_t i = begin; i < end; ++i) {
    const Row& row = fetch_row(i, end);
    const int64_t first = outputs.row_ptr[i];
    write_row(row, particles.particle.data(), first_edge.data(), outputs.source + first, outputs.reverse + first);
    std::fill_n(outputs.receiver + first, row.n, i);
    write_shifts(slot_at(i), outputs.shifts + 3 * first);
  }
}

void NeighborSearchCpu::State::count_half(int64_t begin, int64_t end, const HalfOutputs& outputs) const {
  for (int64_t slot = begin; slot < end; ++slot) {
    const Row& row = rows[static_cast<size_t>(slot)];
    const int64_t kept = row.n_lower + row.n_itself / 2, i = particle_at(slot);
    outputs.row_ptr[i + 1] = kept;
    outputs.transpose_ptr[i + 1] = row.n - kept;
  }
}

void NeighborSearchCpu::State::write_half(int64_t begin, int64_t end, const HalfOutputs& outputs) const {
  for (int64_t i = begin; i < end; ++i) {
    const Row& row = fetch_row(i, end);
    const int64_t slot = slot_at(i), first = outputs.row_ptr[i], transposed = outputs.transpose_ptr[i];
    const HalfRow half = {row.n_lower, row.n_itself};
    const int64_t n_kept = half.n_lower + half.n_itself / 2;
    for (int32_t k = 0; k < row.n; ++k) {
      const int32_t from = row.source()[k], rank = row.rank()[k], opposite = row.opposite_rank()[k];
      // The opposite of one that is dropped is kept: before the sources of its row that are not lower, where ranks are places, or
      // among the receiver's own images. Selected without a branch, since which it is is as good as random.
      const bool is_kept = half.keeps(rank);
      int64_t* const to =
          is_kept ? outputs.source + first + half.place(rank) : outputs.transpose_slots + transposed + half.place_dropped(rank);
      const int64_t place =
          first_edge[static_cast<size_t>(from)] + (half.n_itself > 0 && from == slot ? half.place(opposite) : opposite);
      *to = is_kept ? particle_at(from) : place;
    }
    std::fill_n(outputs.receiver + first, n_kept, i);
    int32_t* const shifts = outputs.shifts + 3 * first;
    if (!row.has_images && !particles.has_wraps) {
      std::fill_n(shifts, 3 * n_kept, 0);
      continue;
    }
    for (int32_t k = 0; k < row.n; ++k) {
      const int32_t rank = row.rank()[k];
      if (half.keeps(rank)) write_shift(shift_at(slot, row, k), shifts + 3 * static_cast<int64_t>(half.place(rank)));
    }
  }
}

NeighborSearchCpu::NeighborSearchCpu(const NeighborParams& params, const Executor& executor)
    : state_(std::make_unique<State>(params, executor)) {
  State& state = *state_;
  state.row_ptr[0] = 0;
  // Of several parts, some may take longer than others; but what lies between two parts takes longer than what lies within one.
  const int64_t n_parts = executor.n_threads == 1 ? 1 : std::min<int64_t>(state.n_parts(), 4 * executor.n_threads);
  state.for_each_part(n_parts, [&](int64_t begin, int64_t end) { state.search(begin, end); });
  state.for_each_part(n_parts, [&](int64_t begin, int64_t end) { state.pair_up_before(begin, end); });
  state.for_each_part(state.n_parts(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      state.row_ptr[static_cast<size_t>(i) + 1] = state.rows[static_cast<size_t>(state.slot_at(i))].n;
    }
  });
  std::partial_sum(state.row_ptr.begin(), state.row_ptr.end(), state.row_ptr.begin());
}

NeighborSearchCpu::~NeighborSearchCpu() = default;

int64_t NeighborSearchCpu::n_edges() const { return state_->row_ptr[state_->rows.size()]; }

void NeighborSearchCpu::write(const NeighborOutputs& outputs) {
  State& state = *state_;
  std::copy(state.row_ptr.begin(), state.row_ptr.end(), outputs.row_ptr);
  state.find_places(outputs.row_ptr);
  state.for_each_part(state.n_parts(), [&](int64_t begin, int64_t end) { state.write(begin, end, outputs); });
}

void NeighborSearchCpu::write_half(const HalfOutputs& outputs) {
  State& state = *state_;
  outputs.row_ptr[0] = outputs.transpose_ptr[0] = 0;
  state.for_each_part(state.n_parts(), [&](int64_t begin, int64_t end) { state.count_half(begin, end, outputs); });
  for (int64_t* ptr : {outputs.row_ptr, outputs.transpose_ptr}) std::partial_sum(ptr, ptr + state.row_ptr.size(), ptr);
  state.find_places(outputs.row_ptr);
  state.for_each_part(state.n_parts(), [&](int64_t begin, int64_t end) { state.write_half(begin, end, outputs); });
}

}  // namespace glassconv
