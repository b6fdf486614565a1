// The grid of bins that one system's particles are sorted into, and which bins can hold neighbors of a bin's particles.
//
// Bins divide the fractional coordinates of wrapped positions evenly. A neighbor lies within `reach` of a particle in each
// fractional coordinate, hence at most `layers` bins away; along a periodic axis bins are counted on beyond the cell, and
// bin k stands for bin k mod n in image floor(k / n). With fewer than 2 layers + 1 bins on an axis a bin is met in several
// images, which is all it takes to find every image pair of a small cell.
#pragma once

#include "lattice.h"

namespace glassconv {

// What must be known of all particles of a system before its grid can be laid.
struct Extent {
  double size = 0.0;  // largest |r| + |wrap @ cell|, 1-norms: the scale of every rounding error
  double low[3] = {0.0, 0.0, 0.0};
  double high[3] = {1.0, 1.0, 1.0};  // of the fractional coordinate: of the particles on open axes, [0, 1] on periodic ones
};

struct CellGrid {
  Lattice lattice;
  double margin;  // bound on the difference between a distance of wrapped positions and the defined one
  double low[3];  // fractional coordinate where bins begin
  double bins_per_unit[3];
  int64_t n_bins[3];
  int64_t layers[3];
  int64_t n_images[3];  // images -n_images .. n_images can hold neighbors; 0 on open axes
  int image_bits[3];    // enough for 2 n_images + 1 values
  int64_t first_bin;    // of this system in the bins of all systems
  double surroundings;  // bound on the distance between a particle of a bin and one of the bins that can hold its neighbors
  bool repeats_pairs;   // the same two particles can be neighbors through several images
};

constexpr int64_t max_images = int64_t{1} << 24;
constexpr int64_t max_images_on_axis = 1000000;  // products of three still fit 64 bits

GLASS_HD inline int64_t floor_divide(int64_t value, int64_t divisor) {
  return value >= 0 ? value / divisor : -((divisor - 1 - value) / divisor);
}

GLASS_HD inline int64_t total_bins(const CellGrid& grid) { return grid.n_bins[0] * grid.n_bins[1] * grid.n_bins[2]; }

GLASS_HD inline int64_t total_images(const CellGrid& grid) {
  return (2 * grid.n_images[0] + 1) * (2 * grid.n_images[1] + 1) * (2 * grid.n_images[2] + 1);
}

GLASS_HD inline bool has_too_many_images(const CellGrid& grid) {
  for (int axis = 0; axis < 3; ++axis) {
    if (grid.n_images[axis] >= max_images_on_axis) return true;
  }
  return total_images(grid) > max_images;
}

// Shifts of the wrapped search as one number below 2^27, ordered as shifts are: one field of bits for each axis.
GLASS_HD inline uint32_t encode_image(const CellGrid& grid, Shift shift) {
  const auto field = [&](int axis, int64_t value) { return static_cast<uint32_t>(value + grid.n_images[axis]); };
  return (field(0, shift.a) << grid.image_bits[1] | field(1, shift.b)) << grid.image_bits[2] | field(2, shift.c);
}

GLASS_HD inline Shift decode_image(const CellGrid& grid, uint32_t code) {
  const auto lowest = [](uint32_t bits, int count) { return static_cast<int64_t>(bits & ((1u << count) - 1u)); };
  const uint32_t a_and_b = code >> grid.image_bits[2];
  return {static_cast<int64_t>(a_and_b >> grid.image_bits[1]) - grid.n_images[0],
          lowest(a_and_b, grid.image_bits[1]) - grid.n_images[1], lowest(code, grid.image_bits[2]) - grid.n_images[2]};
}

GLASS_HD inline int64_t bin_on_axis(const CellGrid& grid, int axis, double fractional) {
  const double bin = floor((fractional - grid.low[axis]) * grid.bins_per_unit[axis]);
  const double last = static_cast<double>(grid.n_bins[axis] - 1);
  // Rounding may put a particle just outside; reach allows for it.
  return static_cast<int64_t>(bin < 0.0 ? 0.0 : (bin > last ? last : bin));
}

// The bin of a wrapped position; the first axis is the fastest.
GLASS_HD inline int64_t bin_of(const CellGrid& grid, Vector3 wrapped) {
  const Vector3* g = grid.lattice.reciprocal;
  const int64_t b0 = bin_on_axis(grid, 0, dot(wrapped, g[0]));
  const int64_t b1 = bin_on_axis(grid, 1, dot(wrapped, g[1]));
  const int64_t b2 = bin_on_axis(grid, 2, dot(wrapped, g[2]));
  return grid.first_bin + (b2 * grid.n_bins[1] + b1) * grid.n_bins[0] + b0;
}

// Lays the grid of a system of `n_particles` (at least one). The number of bins is at most 2 n_particles + 8, so that memory
// does not grow with the volume of a sparse system. To be refused by the caller when has_too_many_images.
GLASS_HD inline CellGrid make_grid(const Lattice& lattice, const Extent& extent, double cutoff, int64_t n_particles) {
  constexpr double epsilon = 2.220446049250313e-16;
  CellGrid grid;
  grid.lattice = lattice;
  grid.first_bin = 0;
  double size = extent.size + cutoff, skew = 0.0;
  for (int axis = 0; axis < 3; ++axis) {
    const double width = norm(lattice.reciprocal[axis]);
    // images of this axis that the search can meet, each a multiple of the vector that is rounded
    if (lattice.periodic[axis]) size += (ceil(cutoff * width) + 2.0) * norm_1(lattice.vectors[axis]);
    skew = fmax(skew, norm(lattice.vectors[axis]) * width);  // 1 where the axes are orthogonal, whatever their lengths
  }
  // About 11 epsilon size suffice: two wraps, one image offset, and the roundings of the definition itself.
  grid.margin = 64.0 * epsilon * size;
  // Fractional coordinates have the error of the reciprocal vectors on top: relative to the length of such a vector it is at most
  // a few epsilon / (sine of the angle between the other two lattice vectors), and that sine is at least 1 / skew.
  const double reach = (cutoff + grid.margin) * (1.0 + 1e-6) + grid.margin * skew;

  const double limit = static_cast<double>(2 * n_particles + 8);
  for (int axis = 0; axis < 3; ++axis) {
    const double fractional_reach = reach * norm(lattice.reciprocal[axis]);
    const double bins = floor((extent.high[axis] - extent.low[axis]) / fractional_reach);
    grid.n_bins[axis] = static_cast<int64_t>(bins >= 1.0 ? fmin(bins, limit) : 1.0);
  }
  while (static_cast<double>(grid.n_bins[0]) * static_cast<double>(grid.n_bins[1]) * static_cast<double>(grid.n_bins[2]) >
         limit) {
    int widest_axis = grid.n_bins[0] >= grid.n_bins[1] ? 0 : 1;
    if (grid.n_bins[2] > grid.n_bins[widest_axis]) widest_axis = 2;
    grid.n_bins[widest_axis] = (grid.n_bins[widest_axis] + 1) / 2;
  }
  grid.surroundings = 0.0;
  grid.repeats_pairs = false;
  for (int axis = 0; axis < 3; ++axis) {
    const double length = extent.high[axis] - extent.low[axis];
    const double bins = static_cast<double>(grid.n_bins[axis]);
    grid.low[axis] = extent.low[axis];
    grid.bins_per_unit[axis] = lattice.periodic[axis] || grid.n_bins[axis] > 1 ? bins / length : 0.0;
    const double layers = ceil(reach * norm(lattice.reciprocal[axis]) * grid.bins_per_unit[axis]);
    const double most = lattice.periodic[axis] ? static_cast<double>(max_images_on_axis) : bins - 1.0;
    grid.layers[axis] = static_cast<int64_t>(fmin(layers, most));
    grid.surroundings += (static_cast<double>(grid.layers[axis]) + 1.0) * length / bins * norm(lattice.vectors[axis]);
    // the farthest bins met, from bin 0 down and from the last bin up, both lie this many images away
    grid.n_images[axis] = lattice.periodic[axis] ? (grid.layers[axis] + grid.n_bins[axis] - 1) / grid.n_bins[axis] : 0;
    grid.image_bits[axis] = 0;
    while ((int64_t{1} << grid.image_bits[axis]) < 2 * grid.n_images[axis] + 1) ++grid.image_bits[axis];
    if (lattice.periodic[axis] && 2 * grid.layers[axis] + 1 > grid.n_bins[axis]) grid.repeats_pairs = true;
  }
  return grid;
}

}  // namespace glassconv
