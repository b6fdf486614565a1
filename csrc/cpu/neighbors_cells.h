// First half of the CPU neighbor search: particles wrapped into their cells and sorted into bins.
#pragma once

#include <exception>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/neighbor_search.h"
#include "../core/neighbors.h"
#include "scratch.h"

namespace glassconv {

// Runs body(task) for each task; the exception of the first task that has one is thrown again here, after all tasks have ended.
template <class Body>
void for_each_task(const Executor& executor, int64_t n_tasks, Body&& body) {
  struct Context {
    Body& body;
    std::mutex mutex;
    std::exception_ptr error;
    int64_t failed_task;
  } context{body, {}, nullptr, 0};
  executor(
      n_tasks,
      [](void* untyped, int64_t task) {
        Context& self = *static_cast<Context*>(untyped);
        try {
          self.body(task);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(self.mutex);
          if (self.error && self.failed_task < task) return;
          self.error = std::current_exception();
          self.failed_task = task;
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

// A line of bins along the first axis has a number more than it has bins, so that it can tell where its last bin ends.
inline int64_t bins_in_line(const CellGrid& grid) { return grid.n_bins[0] + 1; }
inline int64_t first_bin_of_line(const CellGrid& grid, int64_t b, int64_t c) {
  return grid.first_bin + (c * grid.n_bins[1] + b) * bins_in_line(grid);
}

// Particles of all systems, sorted by bin and by index within a bin: a slot is a place in this order. Bins of system s begin at
// grids[s].first_bin, line after line. Lines follow each other in the order of square tiles, so that what is near a bin is for
// the most part near it in memory too.
constexpr int64_t max_overread = 16;  // numbers beyond the last slot that may be read

struct SortedParticles {
  std::vector<CellGrid> grids;   // per system
  std::span<int32_t> bin_start;  // slots; the end of a bin is the start of the next number
  // by slot
  std::span<int32_t> particle;
  std::span<int64_t> bin;
  std::span<double> x, y, z;  // wrapped
  std::span<Wrap> wraps;
  std::span<int32_t> slot_of;  // by particle
  bool has_wraps = false;      // some particle lies outside its cell

  Workspace memory, bins_memory;
};

SortedParticles sort_particles(const NeighborParams& params, const Executor& executor);

// The one way from 64 to 32 bits for what input can make large.
inline int32_t checked_int32(int64_t value, const char* what) {
  constexpr int32_t limit = std::numeric_limits<int32_t>::max();
  if (value > limit) {
    throw std::invalid_argument(std::string(what) + ": expected at most " + std::to_string(limit) + ", got " +
                                std::to_string(value));
  }
  return static_cast<int32_t>(value);
}

inline Vector3 position_of(const NeighborParams& params, int64_t particle) {
  const double* r = params.positions + 3 * particle;
  return {r[0], r[1], r[2]};
}

}  // namespace glassconv
