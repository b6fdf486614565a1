// Lanes<T>: as many T as one SIMD register of this instruction set holds, through the compiler's vector extension, with the
// few operations that move data across lanes. Everything here is in the namespace of the instruction set and inlined.
#pragma once

#include <string.h>

#include "../core/spherical_harmonics.h"

#ifndef GLASSCONV_LANE_BYTES
#define GLASSCONV_LANE_BYTES 16  // SSE2 and NEON: what every supported machine has
#endif

namespace glassconv {
namespace GLASSCONV_ISA {

template <class T>
struct LanesOf {
  typedef T type __attribute__((vector_size(GLASSCONV_LANE_BYTES)));
};
template <class T>
using Lanes = typename LanesOf<T>::type;
template <class T>
inline constexpr int kLanes = GLASSCONV_LANE_BYTES / static_cast<int>(sizeof(T));

template <>
struct ScalarOf<Lanes<float>> {
  using type = float;
};
template <>
struct ScalarOf<Lanes<double>> {
  using type = double;
};

template <class T>
GLASS_INLINE Lanes<T> load(const T* p) {
  Lanes<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
GLASS_INLINE void store(T* p, const Lanes<T>& v) {
  memcpy(p, &v, sizeof v);
}
// The first n < kLanes<T> lanes, by powers of two: no element beyond them is touched.
template <class T>
GLASS_INLINE void store_first(T* p, const Lanes<T>& v, int n) {
  alignas(64) T lane[kLanes<T>];
  memcpy(lane, &v, sizeof v);
  int done = 0;
  if constexpr (kLanes<T> > 8) {
    if (n & 8) memcpy(p, lane, 8 * sizeof(T)), done = 8;
  }
  if constexpr (kLanes<T> > 4) {
    if (n & 4) memcpy(p + done, lane + done, 4 * sizeof(T)), done += 4;
  }
  if constexpr (kLanes<T> > 2) {
    if (n & 2) memcpy(p + done, lane + done, 2 * sizeof(T)), done += 2;
  }
  if (n & 1) p[done] = lane[done];
}

template <class T>
struct LanewiseInverseNorm {
  static GLASS_INLINE Lanes<T> of(const Lanes<T>& norm_sq) {
    Lanes<T> out;
    for (int i = 0; i < kLanes<T>; ++i) out[i] = InverseNorm<T>::of(norm_sq[i]);
    return out;
  }
};
template <class T>
struct LanewiseInverseSize {
  static GLASS_INLINE Lanes<T> of(const Lanes<T>& x, const Lanes<T>& y, const Lanes<T>& z) {
    Lanes<T> out;
    for (int i = 0; i < kLanes<T>; ++i) out[i] = InverseSize<T>::of(x[i], y[i], z[i]);
    return out;
  }
};
template <>
struct InverseSize<Lanes<float>> : LanewiseInverseSize<float> {};
template <>
struct InverseSize<Lanes<double>> : LanewiseInverseSize<double> {};
template <>
struct InverseNorm<Lanes<float>> : LanewiseInverseNorm<float> {};
template <>
struct InverseNorm<Lanes<double>> : LanewiseInverseNorm<double> {};

// The elementary exchange of a transposition, for a power of two `step`. With bit = (lane & step):
//   low[lane]  = bit ? b[lane - step] : a[lane]        high[lane] = bit ? b[lane] : a[lane + step]
template <int step, int n, class V, int... lane>
GLASS_INLINE V exchange_low(const V& a, const V& b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, ((lane & step) ? n + lane - step : lane)...);
}
template <int step, int n, class V, int... lane>
GLASS_INLINE V exchange_high(const V& a, const V& b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, ((lane & step) ? n + lane : lane + step)...);
}

template <class T, int step>
GLASS_INLINE void transpose_step(Lanes<T>* v) {
  constexpr int n = kLanes<T>;
  using Sequence = std::make_integer_sequence<int, n>;
  if constexpr (step < n) {
    for (int i = 0; i < n; ++i) {
      if (i & step) continue;
      const Lanes<T> a = v[i], b = v[i + step];
      v[i] = exchange_low<step, n>(a, b, Sequence{});
      v[i + step] = exchange_high<step, n>(a, b, Sequence{});
    }
    transpose_step<T, 2 * step>(v);
  }
}
// v[i][j] <-> v[j][i] for a square of kLanes<T> vectors.
template <class T>
GLASS_INLINE void transpose(Lanes<T>* v) {
  transpose_step<T, 1>(v);
}

template <class T, int step>
GLASS_INLINE void reduce_step(Lanes<T>* v) {
  constexpr int n = kLanes<T>;
  using Sequence = std::make_integer_sequence<int, n>;
  if constexpr (step < n) {
    for (int i = 0; i < n / (2 * step); ++i) {
      const Lanes<T> a = v[2 * i], b = v[2 * i + 1];
      v[i] = exchange_low<step, n>(a, b, Sequence{}) + exchange_high<step, n>(a, b, Sequence{});
    }
    reduce_step<T, 2 * step>(v);
  }
}
// out[i] += sum over the lanes of v[i], i < n. v is overwritten and must have room up to a multiple of kLanes<T>.
template <class T>
inline void add_lane_sums(Lanes<T>* v, int n, T* out) {
  constexpr int width = kLanes<T>;
  for (int i = n; i % width != 0; ++i) v[i] = Lanes<T>{};
  for (int i = 0; i < n; i += width) {
    reduce_step<T, 1>(v + i);
    if (i + width <= n) {
      store<T>(out + i, load<T>(out + i) + v[i]);
    } else {
      for (int k = i; k < n; ++k) out[k] += v[i][k - i];
    }
  }
}

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
