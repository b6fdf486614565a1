// Lanes<T>: as many T as one SIMD register of this instruction set holds, through the compiler's vector extension, with the
// few operations that move data across lanes. Everything here is in the namespace of the instruction set and inlined.
#pragma once

#include <string.h>

#include <type_traits>

#if GLASSCONV_LANE_BYTES > 16
#include <immintrin.h>
#endif

#include "../core/spherical_harmonics.h"

#ifndef GLASSCONV_LANE_BYTES
#define GLASSCONV_LANE_BYTES 16  // SSE2 and NEON: what every supported machine has
#endif

namespace glassconv {
namespace GLASSCONV_ISA {

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using Lanes = typename VectorOf<T, GLASSCONV_LANE_BYTES>::type;
template <class T>
inline constexpr int kLanes = GLASSCONV_LANE_BYTES / static_cast<int>(sizeof(T));

// Half a register of 16 floats, for the many networks of 8 channels: of the other types a register holds no more than that.
template <class T>
inline constexpr bool kHasHalf = kLanes<T> > 8;
template <class T>
using HalfLanes = typename VectorOf<T, kHasHalf<T> ? GLASSCONV_LANE_BYTES / 2 : GLASSCONV_LANE_BYTES>::type;

template <>
struct ScalarOf<Lanes<float>> {
  using type = float;
};
template <>
struct ScalarOf<Lanes<double>> {
  using type = double;
};
#if GLASSCONV_LANE_BYTES == 64
template <>
struct ScalarOf<HalfLanes<float>> {
  using type = float;
};
#endif
template <class V>
inline constexpr int kWidth = static_cast<int>(sizeof(V) / sizeof(Scalar<V>));

template <class V>
GLASS_INLINE V load_vector(const Scalar<V>* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
GLASS_INLINE void store_vector(Scalar<V>* p, const V& v) {
  memcpy(p, &v, sizeof v);
}
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
// Past the caches, to an address aligned to the vector: for arrays that are written once and read much later.
template <class T>
GLASS_INLINE void stream(T* p, const Lanes<T>& v) {
#if GLASSCONV_LANE_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif GLASSCONV_LANE_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#else
  store<T>(p, v);
#endif
}
// The first n < kWidth<V> lanes, by powers of two: no element beyond them is touched.
template <class V>
GLASS_INLINE void store_first(Scalar<V>* p, const V& v, int n) {
  using T = Scalar<V>;
  constexpr int width = kWidth<V>;
  alignas(64) T lane[width];
  memcpy(lane, &v, sizeof v);
  int done = 0;
  if constexpr (width > 8) {
    if (n & 8) memcpy(p, lane, 8 * sizeof(T)), done = 8;
  }
  if constexpr (width > 4) {
    if (n & 4) memcpy(p + done, lane + done, 4 * sizeof(T)), done += 4;
  }
  if constexpr (width > 2) {
    if (n & 2) memcpy(p + done, lane + done, 2 * sizeof(T)), done += 2;
  }
  if (n & 1) p[done] = lane[done];
}
// Keeps the first n lanes of a vector and puts 0 in the others, whatever they hold.
template <class V>
class KeepFirst {
 public:
  explicit KeepFirst(int n) {
    for (int i = 0; i < kWidth<V>; ++i) bits_[i] = i < n ? -1 : 0;
  }
  GLASS_INLINE V operator()(const V& v) const { return reinterpret_cast<V>(reinterpret_cast<Bits>(v) & bits_); }

 private:
  using Integer = std::conditional_t<sizeof(Scalar<V>) == 4, int32_t, int64_t>;
  using Bits = typename VectorOf<Integer, sizeof(V)>::type;
  Bits bits_;
};

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

template <class V, int step>
GLASS_INLINE void reduce_step(V* v) {
  constexpr int n = kWidth<V>;
  using Sequence = std::make_integer_sequence<int, n>;
  if constexpr (step < n) {
    for (int i = 0; i < n / (2 * step); ++i) {
      const V a = v[2 * i], b = v[2 * i + 1];
      v[i] = exchange_low<step, n>(a, b, Sequence{}) + exchange_high<step, n>(a, b, Sequence{});
    }
    reduce_step<V, 2 * step>(v);
  }
}
// Lane i of the result is the sum over the lanes of v[i], for kWidth<V> vectors, which are overwritten.
template <class V>
GLASS_INLINE V reduced(V* v) {
  reduce_step<V, 1>(v);
  return v[0];
}

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
