// Periodic cells: fractional coordinates, and the one decision of the neighbor search.
//
// Rows of a cell are lattice vectors. An axis that is not periodic takes no part in anything periodic; here its vector is
// replaced by a unit vector normal to the periodic ones, so that every cell, zero vectors included, has fractional coordinates.
#pragma once

#include <cmath>

#include "platform.h"

namespace glassconv {

struct Vector3 {
  double x, y, z;
};

struct Shift {
  int64_t a, b, c;
};

// Products and sums that no compiler may fuse: the edge set is defined by float64 arithmetic, one rounding per operation.
// (Host code is compiled with -ffp-contract=off.)
GLASS_INLINE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

GLASS_INLINE double rounded_sum(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

GLASS_HD inline double dot(Vector3 u, Vector3 v) { return u.x * v.x + u.y * v.y + u.z * v.z; }

GLASS_HD inline Vector3 cross(Vector3 u, Vector3 v) {
  return {u.y * v.z - u.z * v.y, u.z * v.x - u.x * v.z, u.x * v.y - u.y * v.x};
}

GLASS_HD inline double norm(Vector3 u) { return sqrt(dot(u, u)); }

GLASS_HD inline double norm_1(Vector3 u) { return fabs(u.x) + fabs(u.y) + fabs(u.z); }

GLASS_HD inline Vector3 scaled(Vector3 u, double factor) { return {u.x * factor, u.y * factor, u.z * factor}; }

// Between these, lengths have squares that are ordinary numbers, also a billion cells away and relative to the thinnest cell.
constexpr double min_length = 1e-140, max_length = 1e140;

GLASS_HD inline double largest_component(Vector3 u) { return fmax(fabs(u.x), fmax(fabs(u.y), fabs(u.z))); }

// Not infinite and not NaN (which fmax would pass over).
GLASS_HD inline bool is_finite(Vector3 u) { return fabs(u.x) < HUGE_VAL && fabs(u.y) < HUGE_VAL && fabs(u.z) < HUGE_VAL; }

// Exact as long as nothing underflows.
GLASS_HD inline Vector3 times_power_of_two(Vector3 u, int exponent) {
  return {ldexp(u.x, exponent), ldexp(u.y, exponent), ldexp(u.z, exponent)};
}

struct Lattice {
  Vector3 given[3];       // as the caller gave them: what decisions use
  Vector3 vectors[3];     // open axes completed
  Vector3 reciprocal[3];  // fractional coordinate a of r is dot(r, reciprocal[a])
  bool periodic[3];
  bool is_out_of_range;  // not finite, or a periodic vector beyond min_length .. max_length; nothing else may be used then
  bool is_singular;      // periodic vectors (nearly) linearly dependent; nothing else may be used then
};

GLASS_HD inline Vector3 any_normal(Vector3 u) {
  const double x = fabs(u.x), y = fabs(u.y), z = fabs(u.z);
  const Vector3 least = x <= y && x <= z ? Vector3{1, 0, 0} : (y <= z ? Vector3{0, 1, 0} : Vector3{0, 0, 1});
  const Vector3 normal = cross(u, least);
  return scaled(normal, 1.0 / norm(normal));
}

GLASS_HD inline void complete_open_axes(const bool* periodic, Vector3* v) {
  const int n_periodic = periodic[0] + periodic[1] + periodic[2];
  if (n_periodic == 0) {
    v[0] = {1, 0, 0}, v[1] = {0, 1, 0}, v[2] = {0, 0, 1};
  } else if (n_periodic == 1) {
    const int p = periodic[0] ? 0 : (periodic[1] ? 1 : 2);
    v[(p + 1) % 3] = any_normal(v[p]);
    const Vector3 normal = cross(v[p], v[(p + 1) % 3]);
    v[(p + 2) % 3] = scaled(normal, 1.0 / norm(normal));
  } else if (n_periodic == 2) {
    const int open = !periodic[0] ? 0 : (!periodic[1] ? 1 : 2);
    const Vector3 normal = cross(v[(open + 1) % 3], v[(open + 2) % 3]);
    v[open] = scaled(normal, 1.0 / norm(normal));
  }
}

// `cell` holds nine numbers, row by row; `pbc` three.
GLASS_HD inline Lattice make_lattice(const double* cell, const bool* pbc) {
  constexpr double min_unit_volume = 1e-8;  // a little below what the Python check rejects with a better message
  Lattice lattice;
  lattice.is_out_of_range = false;
  // Each vector by the power of two that brings its largest component to between 1/2 and 1: products of three neither over- nor
  // underflow, however long, short or different the vectors are.
  Vector3 v[3];
  int exponent[3];
  for (int axis = 0; axis < 3; ++axis) {
    lattice.given[axis] = {cell[3 * axis], cell[3 * axis + 1], cell[3 * axis + 2]};
    lattice.periodic[axis] = pbc[axis];
    exponent[axis] = 0;
    const double largest = largest_component(lattice.given[axis]);
    if (!is_finite(lattice.given[axis])) lattice.is_out_of_range = true;
    if (!pbc[axis] || lattice.is_out_of_range) continue;
    if (largest > max_length || (largest > 0.0 && largest < min_length)) lattice.is_out_of_range = true;
    frexp(largest, &exponent[axis]);
    v[axis] = times_power_of_two(lattice.given[axis], -exponent[axis]);
  }
  if (lattice.is_out_of_range) return lattice;
  complete_open_axes(lattice.periodic, v);
  const double volume = dot(v[0], cross(v[1], v[2]));
  // negated, so that NaN counts as singular
  lattice.is_singular = !(fabs(volume) > min_unit_volume * norm(v[0]) * norm(v[1]) * norm(v[2]));
  for (int axis = 0; axis < 3; ++axis) {
    lattice.vectors[axis] = pbc[axis] ? lattice.given[axis] : v[axis];
    const Vector3 reciprocal = scaled(cross(v[(axis + 1) % 3], v[(axis + 2) % 3]), 1.0 / volume);
    lattice.reciprocal[axis] = times_power_of_two(reciprocal, -exponent[axis]);
  }
  return lattice;
}

// S_a a + S_b b + S_c c of some vectors, in the order of operations that defines the edge set.
GLASS_HD inline Vector3 combine(const Vector3* v, double a, double b, double c) {
  return {
      rounded_sum(rounded_sum(rounded_product(a, v[0].x), rounded_product(b, v[1].x)), rounded_product(c, v[2].x)),
      rounded_sum(rounded_sum(rounded_product(a, v[0].y), rounded_product(b, v[1].y)), rounded_product(c, v[2].y)),
      rounded_sum(rounded_sum(rounded_product(a, v[0].z), rounded_product(b, v[1].z)), rounded_product(c, v[2].z)),
  };
}

// The squared distance that the definition compares, `shift` being that of the edge as combine() gives it. Exactly symmetric:
// exchanging the particles and negating the shift negates every intermediate.
GLASS_HD inline double distance_sq_between(Vector3 receiver, Vector3 source, Vector3 shift) {
  const double dx = rounded_sum(rounded_sum(receiver.x, -source.x), shift.x);
  const double dy = rounded_sum(rounded_sum(receiver.y, -source.y), shift.y);
  const double dz = rounded_sum(rounded_sum(receiver.z, -source.z), shift.z);
  return rounded_sum(rounded_sum(rounded_product(dx, dx), rounded_product(dy, dy)), rounded_product(dz, dz));
}

// The definition of an edge.
GLASS_HD inline bool is_edge(const Lattice& lattice, Vector3 receiver, Vector3 source, Shift shift, double cutoff_sq) {
  const Vector3 s =
      combine(lattice.given, static_cast<double>(shift.a), static_cast<double>(shift.b), static_cast<double>(shift.c));
  return distance_sq_between(receiver, source, s) < cutoff_sq;
}

}  // namespace glassconv
