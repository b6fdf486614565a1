// The steps of the neighbor search that every compiled backend shares: wrapping a position, the number that stands for an edge
// while its row is sorted, and the runs of bins around a bin.
#pragma once

#include "cell_grid.h"

namespace glassconv {

struct Wrap {
  int32_t a, b, c;  // the cell a particle was found in
};

constexpr double max_wrap = 1e9;  // differences of two wraps, and an image on top, still fit 32 bits

struct WrappedPosition {
  Vector3 position;
  Wrap wrap;
  bool is_too_far;  // more than max_wrap cells away; nothing else may be used then
};

GLASS_HD inline WrappedPosition wrap_position(const Lattice& lattice, Vector3 r) {
  double cell_of[3] = {0.0, 0.0, 0.0};
  bool is_near = true;
  for (int axis = 0; axis < 3; ++axis) {
    if (lattice.periodic[axis]) cell_of[axis] = floor(dot(r, lattice.reciprocal[axis]));
    is_near = is_near && fabs(cell_of[axis]) <= max_wrap;
  }
  if (!is_near) return {r, {0, 0, 0}, true};
  const Vector3 back = combine(lattice.vectors, cell_of[0], cell_of[1], cell_of[2]);
  return {{r.x - back.x, r.y - back.y, r.z - back.z},
          {static_cast<int32_t>(cell_of[0]), static_cast<int32_t>(cell_of[1]), static_cast<int32_t>(cell_of[2])},
          false};
}

// What a particle adds to Extent::size.
GLASS_HD inline double size_of(const Lattice& lattice, Vector3 r, Wrap wrap) {
  return norm_1(r) + fabs(static_cast<double>(wrap.a)) * norm_1(lattice.vectors[0]) +
         fabs(static_cast<double>(wrap.b)) * norm_1(lattice.vectors[1]) +
         fabs(static_cast<double>(wrap.c)) * norm_1(lattice.vectors[2]);
}

// The shift of an edge between particles as given, from the image in which the search of wrapped positions met the source.
GLASS_HD inline Shift shift_between(Shift image, Wrap receiver, Wrap source) {
  return {image.a + source.a - receiver.a, image.b + source.b - receiver.b, image.c + source.c - receiver.c};
}

using EdgeKey = uint64_t;  // source in the high half, image code in the low one: sorts as (source, shift)

GLASS_HD inline EdgeKey make_key(int32_t source, uint32_t image) { return static_cast<EdgeKey>(source) << 32 | image; }
GLASS_HD inline int32_t source_of(EdgeKey key) { return static_cast<int32_t>(key >> 32); }
GLASS_HD inline uint32_t image_of(EdgeKey key) { return static_cast<uint32_t>(key); }

// The bins within `layers` of one bin, as runs: along the first axis bins that follow each other in the same image are one.
struct Surroundings {
  int64_t low[3], high[3];  // bins on each axis, counted on beyond the cell along periodic ones
  int64_t first_image;      // of the runs along the first axis
  uint32_t n_runs[3];       // along the first axis, and bins on the others
};

// Consecutive bins of one system, met in one image.
struct Run {
  int64_t first, last;
  Shift image;
};

// `at`: where the bin is on each axis.
GLASS_HD inline Surroundings surroundings_at(const CellGrid& grid, const int64_t* at) {
  Surroundings around;
  for (int axis = 0; axis < 3; ++axis) {
    const bool is_periodic = grid.lattice.periodic[axis];
    const int64_t low = at[axis] - grid.layers[axis], high = at[axis] + grid.layers[axis], last = grid.n_bins[axis] - 1;
    around.low[axis] = is_periodic || low > 0 ? low : 0;
    around.high[axis] = is_periodic || high < last ? high : last;
    around.n_runs[axis] = static_cast<uint32_t>(around.high[axis] - around.low[axis] + 1);
  }
  around.first_image = floor_divide(around.low[0], grid.n_bins[0]);
  around.n_runs[0] = static_cast<uint32_t>(floor_divide(around.high[0], grid.n_bins[0]) - around.first_image + 1);
  return around;
}

GLASS_HD inline Surroundings surroundings_of(const CellGrid& grid, int64_t bin) {
  const int64_t local = bin - grid.first_bin;
  const int64_t at[3] = {local % grid.n_bins[0], local / grid.n_bins[0] % grid.n_bins[1],
                         local / grid.n_bins[0] / grid.n_bins[1]};
  return surroundings_at(grid, at);
}

// Below 2^29: images are at most max_images together, and an axis has more runs than images only when it has several bins, and
// then at most five.
GLASS_HD inline uint32_t total_runs(const Surroundings& around) {
  return around.n_runs[0] * around.n_runs[1] * around.n_runs[2];
}

GLASS_HD inline Run run_at(const CellGrid& grid, const Surroundings& around, uint32_t index) {
  const uint32_t row = index / around.n_runs[0];
  const int64_t bin_b = around.low[1] + row % around.n_runs[1], bin_c = around.low[2] + row / around.n_runs[1];
  const Shift image = {around.first_image + index % around.n_runs[0], floor_divide(bin_b, grid.n_bins[1]),
                       floor_divide(bin_c, grid.n_bins[2])};
  const int64_t first = around.low[0] - image.a * grid.n_bins[0], last = around.high[0] - image.a * grid.n_bins[0];
  const int64_t begin =
      grid.first_bin +
      ((bin_c - image.c * grid.n_bins[2]) * grid.n_bins[1] + bin_b - image.b * grid.n_bins[1]) * grid.n_bins[0];
  return {begin + (first > 0 ? first : 0), begin + (last < grid.n_bins[0] ? last : grid.n_bins[0] - 1), image};
}

}  // namespace glassconv
