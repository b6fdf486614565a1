#include "neighbors_cells.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <string>

namespace glassconv {
namespace {

constexpr int64_t particles_per_chunk = 4096;
constexpr double max_wrap = 1e9;  // differences of two wraps, and an image on top, still fit 32 bits

// A piece of work: some particles of one system.
struct Chunk {
  int64_t system, begin, end;
};

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(Vector3 r) {
  char buffer[96];
  std::snprintf(buffer, sizeof buffer, "[%.17g, %.17g, %.17g]", r.x, r.y, r.z);
  return buffer;
}

std::vector<Chunk> make_chunks(const NeighborParams& params) {
  std::vector<Chunk> chunks;
  for (int64_t begin = 0; begin < params.n_particles;) {
    const int64_t system = params.batch[begin];
    if (system < 0 || system >= params.n_systems || (begin > 0 && system < params.batch[begin - 1])) {
      refuse("batch: expected non-decreasing systems from 0 to " + std::to_string(params.n_systems - 1) + ", got " +
             std::to_string(system) + " at particle " + std::to_string(begin));
    }
    const int64_t limit = std::min(params.n_particles, begin + particles_per_chunk);
    int64_t end = begin + 1;
    while (end < limit && params.batch[end] == system) ++end;
    chunks.push_back({system, begin, end});
    begin = end;
  }
  return chunks;
}

struct Particle {
  Vector3 wrapped;
  Wrap wrap;
};

Particle wrap_particle(const Lattice& lattice, Vector3 r, int64_t index) {
  double cell_of[3] = {0.0, 0.0, 0.0};
  for (int axis = 0; axis < 3; ++axis) {
    if (!lattice.periodic[axis]) continue;
    cell_of[axis] = std::floor(dot(r, lattice.reciprocal[axis]));
    if (!(std::fabs(cell_of[axis]) <= max_wrap)) {
      refuse("positions: expected within 1e9 cells of the origin, got " + text(r) + " at particle " + std::to_string(index));
    }
  }
  const Vector3 back = combine(lattice.vectors, cell_of[0], cell_of[1], cell_of[2]);
  return {{r.x - back.x, r.y - back.y, r.z - back.z},
          {static_cast<int32_t>(cell_of[0]), static_cast<int32_t>(cell_of[1]), static_cast<int32_t>(cell_of[2])}};
}

double size_of(const Lattice& lattice, Vector3 r, Wrap wrap) {
  return norm_1(r) + std::abs(wrap.a) * norm_1(lattice.vectors[0]) + std::abs(wrap.b) * norm_1(lattice.vectors[1]) +
         std::abs(wrap.c) * norm_1(lattice.vectors[2]);
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
      refuse("positions: expected finite numbers up to 1e140, got " + text(r) + " at particle " + std::to_string(i));
    }
    const Particle particle = wrap_particle(lattice, r, i);
    wrapped[i] = particle.wrapped;
    wraps[i] = particle.wrap;
    extent.size = std::max(extent.size, size_of(lattice, r, particle.wrap));
    for (int axis = 0; axis < 3; ++axis) {
      if (lattice.periodic[axis]) continue;
      const double fractional = dot(particle.wrapped, lattice.reciprocal[axis]);
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
    const Lattice& lattice = lattices.back();
    for (int axis = 0; lattice.is_out_of_range && axis < 3; ++axis) {
      const double largest = largest_component(lattice.given[axis]);
      const bool is_short_or_long = lattice.periodic[axis] && largest > 0.0 && (largest < min_length || largest > max_length);
      if (is_finite(lattice.given[axis]) && !is_short_or_long) continue;
      refuse("cell: expected finite vectors, periodic ones between 1e-140 and 1e140, got " + text(lattice.given[axis]) +
             " (vector " + std::to_string(axis) + " of system " + std::to_string(system) + ")");
    }
    if (lattices.back().is_singular) {
      refuse("cell: expected linearly independent periodic vectors, got a singular cell (system " + std::to_string(system) +
             ")");
    }
  }
  return lattices;
}

// The grid of every system; extents of its chunks are joined first. Returns the number of bins.
int64_t lay_grids(const std::vector<Lattice>& lattices, const std::vector<Chunk>& chunks, const std::vector<Extent>& extents,
                  double cutoff, std::vector<CellGrid>& grids) {
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
    grid = make_grid(lattices[static_cast<size_t>(system)], all, cutoff, chunks[last - 1].end - chunks[first].begin);
    if (has_too_many_images(grid)) {
      refuse("cutoff: expected at most " + std::to_string(max_images) +
             " periodic images within reach, got more (the cell around particle " + std::to_string(chunks[first].begin) +
             " is too small, too elongated or too skewed for this cutoff)");
    }
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

  const int64_t n_bins = lay_grids(lattices, chunks, extents, params.cutoff, sorted.grids);
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
