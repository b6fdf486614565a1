// Spherical harmonics and their derivatives for one vector, with constant indices throughout so that all stays in registers.
#pragma once

#include "../core/coupled_set.h"
#include "../core/spherical_harmonics.h"
#include "launch.cuh"

namespace glassconv {

// Calls use(std::integral_constant<int, l_max>).
template <class Use>
__device__ __forceinline__ void with_constant_l_max(int l_max, Use&& use) {
  for_each_constant<kMaxL + 1>([&](auto constant) {
    if (l_max == constant()) use(constant);
  });
}

// Calls use(l, m, y) for every harmonic of r, m from 0 to 2 l; V may be a jet.
template <int l_max, class V, class Use>
__device__ __forceinline__ void for_each_harmonic(const V* r, const V& one, Use&& use) {
  V y[n_harmonics(l_max)];
  generic::spherical_harmonics(r, one, l_max, y);
#pragma unroll
  for (int l = 0; l <= l_max; ++l) {
#pragma unroll
    for (int m = 0; m < 2 * l + 1; ++m) use(l, m, y[l * l + m]);
  }
}

// Calls use(l, m, dY/dr . along).
template <int l_max, class T, class Use>
__device__ __forceinline__ void for_each_harmonic_along(const T* r, const T* along, Use&& use) {
  using J = generic::Jet<T, 1>;
  const J jets[3] = {{r[0], {along[0]}}, {r[1], {along[1]}}, {r[2], {along[2]}}};
  for_each_harmonic<l_max>(jets, J{T(1), {T(0)}}, [&](int l, int m, const J& y) { use(l, m, y.along[0]); });
}

// gradient[k] += sum_lm grad(l, m) dY_lm/dr_k
template <int l_max, class T, class Gradient>
__device__ __forceinline__ void add_vector_gradient(const T* r, T* gradient, Gradient&& grad) {
  using J = generic::Jet<T, 3>;
  const J jets[3] = {{r[0], {T(1), T(0), T(0)}}, {r[1], {T(0), T(1), T(0)}}, {r[2], {T(0), T(0), T(1)}}};
  for_each_harmonic<l_max>(jets, J{T(1), {T(0), T(0), T(0)}}, [&](int l, int m, const J& y) {
    const T g = grad(l, m);
#pragma unroll
    for (int k = 0; k < 3; ++k) gradient[k] += g * y.along[k];
  });
}

// gradient[k] += sum_lm grad(l, m) d/dr_k (dY_lm/dr . along); one k after the other, for all at once are too many numbers.
template <int l_max, class T, class Gradient>
__device__ __forceinline__ void add_curvature(const T* r, const T* along, T* gradient, Gradient&& grad) {
  using Inner = generic::Jet<T, 1>;
  using J = generic::Jet<Inner, 1>;
  const Inner one = {T(1), {T(0)}}, zero = {T(0), {T(0)}};
#pragma unroll 1
  for (int k = 0; k < 3; ++k) {
    J jets[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) jets[axis] = {{r[axis], {along[axis]}}, {axis == k ? one : zero}};
    T sum = T(0);
    for_each_harmonic<l_max>(jets, J{one, {zero}}, [&](int l, int m, const J& y) { sum += grad(l, m) * y.along[0].along[0]; });
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) gradient[axis] += axis == k ? sum : T(0);
  }
}

}  // namespace glassconv
