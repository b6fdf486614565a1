#include "neighbors_cells.h"

#include <algorithm>
#include <limits>
#include <string>

#include "../core/neighbor_refusals.h"

namespace glassconv {
namespace {

constexpr int64_t particles_per_chunk = 4096;

// A piece of work: some particles of one system.
struct Chunk {
  int64_t system, begin, end;
};

// `index` is a system for cells, a particle for all else.
[[noreturn]] void refuse(const NeighborParams& params, Refusal why, int64_t index) {
  RefusedValues got;
  got.n_systems = params.n_systems;
  if (phase_of(why) == 0) {
    std::copy_n(params.cells + 9 * index, 9, got.cell);
    std::copy_n(params.pbc + 3 * index, 3, got.pbc);
  } else {
    got.system = params.batch[index];
    std::copy_n(params.positions + 3 * index, 3, got.position);
  }
  throw std::invalid_argument(refusal_message(why, index, got));
}

std::vector<Chunk> make_chunks(const NeighborParams& params) {
  std::vector<Chunk> chunks;
  for (int64_t begin = 0; begin < params.n_particles;) {
    const int64_t system = params.batch[begin];
    if (system < 0 || system >= params.n_systems || (begin > 0 && system < params.batch[begin - 1])) {
      refuse(params, Refusal::batch, begin);
    }
    const int64_t limit = std::min(params.n_particles, begin + particles_per_chunk);
    int64_t end = begin + 1;
    while (end < limit && params.batch[end] == system) ++end;
    chunks.push_back({system, begin, end});
    begin = end;
  }
  return chunks;
}

// Wraps the particles of a chunk and measures them.
Extent wrap_chunk(const NeighborParams& params, const Lattice& lattice, const Chunk& chunk, Vector3* wrapped, Wrap* wraps) {
  Extent extent;
  for (int axis = 0; axis < 3; ++axis) {
    if (lattice.periodic[axis]) continue;
    extent.low[axis] = std::numeric_limits<double>::infinity();
    extent.high[axis] = -extent.low[axis];
  }
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    const Vector3 r = position_of(params, i);
    if (!is_finite(r) || largest_component(r) > max_length) {
      refuse(params, Refusal::position_out_of_range, i);
    }
    const WrappedPosition found = wrap_position(lattice, r);
    if (found.is_too_far) refuse(params, Refusal::position_too_far, i);
    wrapped[i] = found.position;
    wraps[i] = found.wrap;
    extent.size = std::max(extent.size, size_of(lattice, r, found.wrap));
    for (int axis = 0; axis < 3; ++axis) {
      if (lattice.periodic[axis]) continue;
      const double fractional = dot(found.position, lattice.reciprocal[axis]);
      extent.low[axis] = std::min(extent.low[axis], fractional);
      extent.high[axis] = std::max(extent.high[axis], fractional);
    }
  }
  return extent;
}

std::vector<Lattice> make_lattices(const NeighborParams& params) {
  std::vector<Lattice> lattices;
  lattices.reserve(static_cast<size_t>(params.n_systems));
  for (int64_t system = 0; system < params.n_systems; ++system) {
    lattices.push_back(make_lattice(params.cells + 9 * system, params.pbc + 3 * system));
    if (lattices.back().is_out_of_range) refuse(params, Refusal::cell_out_of_range, system);
    if (lattices.back().is_singular) refuse(params, Refusal::cell_singular, system);
  }
  return lattices;
}

// The grid of every system; extents of its chunks are joined first. Returns the number of bins.
int64_t lay_grids(const NeighborParams& params, const std::vector<Lattice>& lattices, const std::vector<Chunk>& chunks,
                  const std::vector<Extent>& extents, std::vector<CellGrid>& grids) {
  grids.resize(lattices.size());
  int64_t n_bins = 0;
  for (size_t first = 0; first < chunks.size();) {
    const int64_t system = chunks[first].system;
    Extent all = extents[first];
    size_t last = first + 1;
    for (; last < chunks.size() && chunks[last].system == system; ++last) {
      all.size = std::max(all.size, extents[last].size);
      for (int axis = 0; axis < 3; ++axis) {
        all.low[axis] = std::min(all.low[axis], extents[last].low[axis]);
        all.high[axis] = std::max(all.high[axis], extents[last].high[axis]);
      }
    }
    CellGrid& grid = grids[static_cast<size_t>(system)];
    grid = make_grid(lattices[static_cast<size_t>(system)], all, params.cutoff, chunks[last - 1].end - chunks[first].begin);
    if (has_too_many_images(grid)) refuse(params, Refusal::too_many_images, chunks[first].begin);
    grid.first_bin = n_bins;
    n_bins += total_bins(grid);
    first = last;
  }
  return n_bins;
}

}  // namespace

SortedParticles sort_particles(const NeighborParams& params, const Executor& executor) {
  checked_int32(params.n_particles, "positions: number of particles");
  const std::vector<Lattice> lattices = make_lattices(params);
  const std::vector<Chunk> chunks = make_chunks(params);
  const auto n_chunks = static_cast<int64_t>(chunks.size());
  const auto n = static_cast<size_t>(params.n_particles);
  SortedParticles sorted;
  sorted.wraps.resize(n);
  std::vector<Vector3> wrapped(n);
  std::vector<Extent> extents(chunks.size());
  for_each_task(executor, n_chunks, [&](int64_t task) {
    const Chunk& chunk = chunks[static_cast<size_t>(task)];
    extents[static_cast<size_t>(task)] =
        wrap_chunk(params, lattices[static_cast<size_t>(chunk.system)], chunk, wrapped.data(), sorted.wraps.data());
  });

  const int64_t n_bins = lay_grids(params, lattices, chunks, extents, sorted.grids);
  std::vector<int64_t> bin(n);
  for_each_task(executor, n_chunks, [&](int64_t task) {
    const Chunk& chunk = chunks[static_cast<size_t>(task)];
    const CellGrid& grid = sorted.grids[static_cast<size_t>(chunk.system)];
    for (auto i = static_cast<size_t>(chunk.begin); i < static_cast<size_t>(chunk.end); ++i) bin[i] = bin_of(grid, wrapped[i]);
  });

  // Counting sort: stable, hence by index within a bin.
  sorted.bin_start.assign(static_cast<size_t>(n_bins) + 1, 0);
  for (const int64_t b : bin) ++sorted.bin_start[static_cast<size_t>(b) + 1];
  for (size_t b = 0; b < static_cast<size_t>(n_bins); ++b) sorted.bin_start[b + 1] += sorted.bin_start[b];
  std::vector<int64_t> next(sorted.bin_start.begin(), sorted.bin_start.end() - 1);
  sorted.wrapped.resize(n);
  sorted.order.resize(n);
  sorted.bin.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const auto slot = static_cast<size_t>(next[static_cast<size_t>(bin[i])]++);
    sorted.wrapped[slot] = wrapped[i];
    sorted.order[slot] = static_cast<int32_t>(i);
    sorted.bin[slot] = bin[i];
  }
  return sorted;
}

}  // namespace glassconv
