#include "neighbors_cells.h"

#include <algorithm>
#include <limits>
#include <numeric>
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

struct Measured {
  Extent extent;
  bool has_wraps = false;
};

// Wraps the particles of a chunk and measures them.
Measured wrap_chunk(const NeighborParams& params, const Lattice& lattice, const Chunk& chunk, Vector3* wrapped, Wrap* wraps) {
  Measured found;
  Extent& extent = found.extent;
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
    const WrappedPosition place = wrap_position(lattice, r);
    if (place.is_too_far) refuse(params, Refusal::position_too_far, i);
    wrapped[i] = place.position;
    wraps[i] = place.wrap;
    found.has_wraps |= (place.wrap.a | place.wrap.b | place.wrap.c) != 0;
    extent.size = std::max(extent.size, size_of(lattice, r, place.wrap));
    for (int axis = 0; axis < 3; ++axis) {
      if (lattice.periodic[axis]) continue;
      const double fractional = dot(place.position, lattice.reciprocal[axis]);
      extent.low[axis] = std::min(extent.low[axis], fractional);
      extent.high[axis] = std::max(extent.high[axis], fractional);
    }
  }
  return found;
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
                  const std::vector<Measured>& measured, std::vector<CellGrid>& grids) {
  grids.resize(lattices.size());
  int64_t n_bins = 0;
  for (size_t first = 0; first < chunks.size();) {
    const int64_t system = chunks[first].system;
    Extent all = measured[first].extent;
    size_t last = first + 1;
    for (; last < chunks.size() && chunks[last].system == system; ++last) {
      const Extent& extent = measured[last].extent;
      all.size = std::max(all.size, extent.size);
      for (int axis = 0; axis < 3; ++axis) {
        all.low[axis] = std::min(all.low[axis], extent.low[axis]);
        all.high[axis] = std::max(all.high[axis], extent.high[axis]);
      }
    }
    CellGrid& grid = grids[static_cast<size_t>(system)];
    grid = make_grid(lattices[static_cast<size_t>(system)], all, params.cutoff, chunks[last - 1].end - chunks[first].begin);
    if (has_too_many_images(grid)) refuse(params, Refusal::too_many_images, chunks[first].begin);
    grid.first_bin = n_bins;
    n_bins += grid.n_bins[1] * grid.n_bins[2] * bins_in_line(grid);
    first = last;
  }
  return n_bins;
}

int64_t find_bin(const CellGrid& grid, Vector3 wrapped) {
  const Vector3* g = grid.lattice.reciprocal;
  const int64_t b = bin_on_axis(grid, 1, dot(wrapped, g[1])), c = bin_on_axis(grid, 2, dot(wrapped, g[2]));
  return first_bin_of_line(grid, b, c) + bin_on_axis(grid, 0, dot(wrapped, g[0]));
}

// visit(first bin) for each line, tile by tile.
template <class Visit>
void visit_lines(const CellGrid& grid, Visit&& visit) {
  constexpr int64_t tile = 4;
  for (int64_t tile_c = 0; tile_c < grid.n_bins[2]; tile_c += tile) {
    for (int64_t tile_b = 0; tile_b < grid.n_bins[1]; tile_b += tile) {
      for (int64_t c = tile_c; c < std::min(tile_c + tile, grid.n_bins[2]); ++c) {
        for (int64_t b = tile_b; b < std::min(tile_b + tile, grid.n_bins[1]); ++b) visit(first_bin_of_line(grid, b, c));
      }
    }
  }
}

}  // namespace

SortedParticles sort_particles(const NeighborParams& params, const Executor& executor) {
  checked_int32(params.n_particles, "positions: number of particles");
  const std::vector<Lattice> lattices = make_lattices(params);
  const std::vector<Chunk> chunks = make_chunks(params);
  const auto n_chunks = static_cast<int64_t>(chunks.size());
  const auto n = static_cast<size_t>(params.n_particles);
  Workspace memory(n * (sizeof(Vector3) + sizeof(Wrap) + sizeof(int64_t)), 3);
  const auto wrapped = memory.take<Vector3>(n);
  const auto wraps = memory.take<Wrap>(n);
  const auto bin = memory.take<int64_t>(n);
  std::vector<Measured> measured(chunks.size());
  for_each_task(executor, n_chunks, [&](int64_t task) {
    const Chunk& chunk = chunks[static_cast<size_t>(task)];
    measured[static_cast<size_t>(task)] =
        wrap_chunk(params, lattices[static_cast<size_t>(chunk.system)], chunk, wrapped.data(), wraps.data());
  });

  SortedParticles sorted;
  for (const Measured& chunk : measured) sorted.has_wraps |= chunk.has_wraps;
  const int64_t n_bins = lay_grids(params, lattices, chunks, measured, sorted.grids);
  for_each_task(executor, n_chunks, [&](int64_t task) {
    const Chunk& chunk = chunks[static_cast<size_t>(task)];
    const CellGrid& grid = sorted.grids[static_cast<size_t>(chunk.system)];
    for (auto i = static_cast<size_t>(chunk.begin); i < static_cast<size_t>(chunk.end); ++i)
      bin[i] = find_bin(grid, wrapped[i]);
  });

  // Counting sort: stable, hence by index within a bin.
  sorted.bins_memory = Workspace(static_cast<size_t>(n_bins) * sizeof(int32_t), 1);
  sorted.bin_start = sorted.bins_memory.take<int32_t>(static_cast<size_t>(n_bins));
  int32_t* const start = sorted.bin_start.data();
  std::fill_n(start, n_bins, 0);
  for (const int64_t b : bin) ++start[b];
  int32_t n_before = 0;
  int64_t system = -1;
  for (const Chunk& chunk : chunks) {
    if (chunk.system == system) continue;
    system = chunk.system;
    const CellGrid& grid = sorted.grids[static_cast<size_t>(chunk.system)];
    // where each bin ends, for now; a line ends where its last bin does
    visit_lines(grid, [&](int64_t line) {
      for (int64_t b = line; b < line + bins_in_line(grid); ++b) start[b] = n_before += start[b];
    });
  }
  // taking the particles from the last on, where each bin begins
  const size_t room = n + max_overread;
  sorted.memory = Workspace(room * (2 * sizeof(int32_t) + sizeof(int64_t) + 3 * sizeof(double) + sizeof(Wrap)), 7);
  sorted.particle = sorted.memory.take<int32_t>(room), sorted.bin = sorted.memory.take<int64_t>(room);
  sorted.x = sorted.memory.take<double>(room), sorted.y = sorted.memory.take<double>(room);
  sorted.z = sorted.memory.take<double>(room), sorted.wraps = sorted.memory.take<Wrap>(room);
  sorted.slot_of = sorted.memory.take<int32_t>(n);
  for (size_t i = n; i-- > 0;) {
    sorted.slot_of[i] = --start[bin[i]];
    sorted.particle[static_cast<size_t>(sorted.slot_of[i])] = static_cast<int32_t>(i);
  }
  for_each_task(executor, (params.n_particles + particles_per_chunk - 1) / particles_per_chunk, [&](int64_t task) {
    const auto end = static_cast<size_t>(std::min(params.n_particles, (task + 1) * particles_per_chunk));
    for (auto slot = static_cast<size_t>(task * particles_per_chunk); slot < end; ++slot) {
      const auto i = static_cast<size_t>(sorted.particle[slot]);
      sorted.bin[slot] = bin[i];
      sorted.wraps[slot] = wraps[i];
      sorted.x[slot] = wrapped[i].x, sorted.y[slot] = wrapped[i].y, sorted.z[slot] = wrapped[i].z;
    }
  });
  return sorted;
}

}  // namespace glassconv
