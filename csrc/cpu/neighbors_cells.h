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

namespace glassconv {

// Runs body(task) for each task; the first exception is thrown again here, after all tasks have ended.
template <class Body>
void for_each_task(const Executor& executor, int64_t n_tasks, Body&& body) {
  struct Context {
    Body& body;
    std::mutex mutex;
    std::exception_ptr error;
  } context{body, {}, nullptr};
  executor(
      n_tasks,
      [](void* untyped, int64_t task) {
        Context& self = *static_cast<Context*>(untyped);
        try {
          self.body(task);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(self.mutex);
          if (!self.error) self.error = std::current_exception();
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

// Particles of all systems, sorted by bin and by index within a bin. Bins of system s begin at grids[s].first_bin.
struct SortedParticles {
  std::vector<CellGrid> grids;     // per system
  std::vector<Vector3> wrapped;    // sorted
  std::vector<int32_t> order;      // sorted position -> particle
  std::vector<int64_t> bin;        // sorted position -> bin
  std::vector<int64_t> bin_start;  // (number of bins + 1), sorted positions
  std::vector<Wrap> wraps;         // by particle
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
