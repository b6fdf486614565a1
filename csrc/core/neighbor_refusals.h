// Input that has no neighbor list: why, and the message that says so.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

#include "cell_grid.h"
#include "neighbors.h"

namespace glassconv {

// Kinds of one phase are looked for together, the lowest index first.
enum class Refusal { cell_out_of_range, cell_singular, batch, position_out_of_range, position_too_far, too_many_images, type };

GLASS_HD inline int phase_of(Refusal why) {
  switch (why) {
    case Refusal::type:
      return -1;  // before anything uses it as an index
    case Refusal::cell_out_of_range:
    case Refusal::cell_singular:
      return 0;
    case Refusal::batch:
      return 1;
    case Refusal::position_out_of_range:
    case Refusal::position_too_far:
      return 2;
    case Refusal::too_many_images:
      break;
  }
  return 3;
}

// What a message quotes; each kind of refusal needs some of it.
struct RefusedValues {
  double cell[9] = {};  // of the system
  bool pbc[3] = {};
  int64_t system = 0;  // of the particle
  int64_t n_systems = 0;
  double position[3] = {};
  int32_t type = 0;
  int64_t n_types = 0;
};

inline std::string text_of(const double* r) {
  char buffer[96];
  std::snprintf(buffer, sizeof buffer, "[%.17g, %.17g, %.17g]", r[0], r[1], r[2]);
  return buffer;
}

inline int axis_out_of_range(const double* cell, const bool* pbc) {
  for (int axis = 0; axis < 2; ++axis) {
    const Vector3 vector = {cell[3 * axis], cell[3 * axis + 1], cell[3 * axis + 2]};
    const double largest = largest_component(vector);
    if (!is_finite(vector) || (pbc[axis] && largest > 0.0 && (largest < min_length || largest > max_length))) return axis;
  }
  return 2;
}

// `index` is a system for cells, a particle for all else.
inline std::string refusal_message(Refusal why, int64_t index, const RefusedValues& got) {
  const std::string number = std::to_string(index);
  switch (why) {
    case Refusal::cell_out_of_range: {
      const int axis = axis_out_of_range(got.cell, got.pbc);
      return "cell: expected finite vectors, periodic ones between 1e-140 and 1e140, got " + text_of(got.cell + 3 * axis) +
             " (vector " + std::to_string(axis) + " of system " + number + ")";
    }
    case Refusal::cell_singular:
      return "cell: expected linearly independent periodic vectors, got a singular cell (system " + number + ")";
    case Refusal::batch:
      return "batch: expected non-decreasing systems from 0 to " + std::to_string(got.n_systems - 1) + ", got " +
             std::to_string(got.system) + " at particle " + number;
    case Refusal::position_out_of_range:
      return "positions: expected finite numbers up to 1e140, got " + text_of(got.position) + " at particle " + number;
    case Refusal::position_too_far:
      return "positions: expected within 1e9 cells of the origin, got " + text_of(got.position) + " at particle " + number;
    case Refusal::type:
      return "types: expected types from 0 to " + std::to_string(got.n_types - 1) + ", got " + std::to_string(got.type) +
             " at particle " + number;
    case Refusal::too_many_images:
      break;
  }
  return "cutoff: expected at most " + std::to_string(max_images) + " periodic images within reach, got more, or " +
         std::to_string(max_images_on_axis) + " along one axis (the cell around particle " + number +
         " is too small, too elongated or too skewed for this cutoff)";
}

// Throws std::invalid_argument for the first type that is none.
inline void check_types(const NeighborParams& params) {
  if (params.types == nullptr) return;
  for (int64_t i = 0; i < params.n_particles; ++i) {
    if (params.types[i] >= 0 && params.types[i] < params.n_types) continue;
    RefusedValues got;
    got.type = params.types[i];
    got.n_types = params.n_types;
    throw std::invalid_argument(refusal_message(Refusal::type, i, got));
  }
}

}  // namespace glassconv
