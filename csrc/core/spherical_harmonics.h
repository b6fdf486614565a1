// Real spherical harmonics up to l = 4 of the direction of a vector, e3nn's basis and 'component' normalization
// (sum over m of Y_lm^2 = 2l + 1, polar axis y), with derivatives to second order.
//
// With u = r/|r|, azimuthal part (z + i x)^m and P_l^(m) the m-th derivative of the Legendre polynomial:
//   Y[l*l + l + m] = N_lm P_l^(m)(u_y) Re (u_z + i u_x)^m     Y[l*l + l - m] = N_lm P_l^(m)(u_y) Im (u_z + i u_x)^m
//   N_l0 = sqrt(2l + 1),  N_lm = sqrt(2 (2l + 1) (l - m)! / (l + m)!)
// Derivatives come from running the same body on jets (a value and its directional derivatives), so there is one formula.
// A zero vector has no direction: every Y with l > 0 and all its derivatives are 0 there.
#pragma once

#include "platform.h"

namespace glassconv {

inline constexpr int kMaxL = 4;
constexpr int n_harmonics(int l_max) { return (l_max + 1) * (l_max + 1); }
inline constexpr int kMaxHarmonics = n_harmonics(kMaxL);

namespace GLASSCONV_ISA {

// The arithmetic type of the constants that multiply a V.
template <class V>
struct ScalarOf {
  using type = V;
};
template <class V>
using Scalar = typename ScalarOf<V>::type;

// A value with its derivatives along n directions. A jet of jets carries second derivatives.
template <class V, int n>
struct Jet {
  V value;
  V along[n];
};
template <class V, int n>
struct ScalarOf<Jet<V, n>> {
  using type = Scalar<V>;
};

template <class V, int n>
GLASS_INLINE Jet<V, n> operator+(const Jet<V, n>& a, const Jet<V, n>& b) {
  Jet<V, n> out;
  out.value = a.value + b.value;
  for (int k = 0; k < n; ++k) out.along[k] = a.along[k] + b.along[k];
  return out;
}
template <class V, int n>
GLASS_INLINE Jet<V, n> operator-(const Jet<V, n>& a, const Jet<V, n>& b) {
  Jet<V, n> out;
  out.value = a.value - b.value;
  for (int k = 0; k < n; ++k) out.along[k] = a.along[k] - b.along[k];
  return out;
}
template <class V, int n>
GLASS_INLINE Jet<V, n> operator*(const Jet<V, n>& a, const Jet<V, n>& b) {
  Jet<V, n> out;
  out.value = a.value * b.value;
  for (int k = 0; k < n; ++k) out.along[k] = a.value * b.along[k] + a.along[k] * b.value;
  return out;
}
template <class V, int n>
GLASS_INLINE Jet<V, n> operator*(const Jet<V, n>& a, Scalar<V> s) {
  Jet<V, n> out;
  out.value = a.value * s;
  for (int k = 0; k < n; ++k) out.along[k] = a.along[k] * s;
  return out;
}
template <class V, int n>
GLASS_INLINE Jet<V, n> operator+(const Jet<V, n>& a, Scalar<V> s) {
  Jet<V, n> out = a;
  out.value = a.value + s;
  return out;
}

// What is under the jets: V itself, or the innermost value of a jet.
template <class V>
struct Plain {
  using type = V;
  static GLASS_INLINE const V& of(const V& a) { return a; }
  static GLASS_INLINE V times(const V& a, const V& factor) { return a * factor; }
};
template <class V, int n>
struct Plain<Jet<V, n>> {
  using type = typename Plain<V>::type;
  static GLASS_INLINE const type& of(const Jet<V, n>& a) { return Plain<V>::of(a.value); }
  static GLASS_INLINE Jet<V, n> times(const Jet<V, n>& a, const type& factor) {
    Jet<V, n> out;
    out.value = Plain<V>::times(a.value, factor);
    for (int k = 0; k < n; ++k) out.along[k] = Plain<V>::times(a.along[k], factor);
    return out;
  }
};

// Functions of the lengths are templates to be specialized for V: overloads for SIMD vectors would not be found from here.
// 1 / max(|x|, |y|, |z|); 0 where that is not a normal number, which then counts as the zero vector.
template <class V>
struct InverseSize {
  static GLASS_INLINE V of(V x, V y, V z) {
    constexpr V smallest = sizeof(V) == sizeof(float) ? V(1.17549435e-38f) : V(2.2250738585072014e-308);
    const V a = x < 0 ? -x : x, b = y < 0 ? -y : y, c = z < 0 ? -z : z;
    const V ab = a > b ? a : b, size = ab > c ? ab : c;
    return size >= smallest ? 1 / size : V(0);
  }
};

// 1 / sqrt(norm_sq), and 0 at 0; the derivative -1/2 norm_sq^(-3/2) is likewise 0 at 0.
template <class V>
struct InverseNorm {
  static GLASS_INLINE V of(V norm_sq) {
    if constexpr (sizeof(V) == sizeof(float)) {
      return norm_sq == 0 ? 0.0f : 1.0f / __builtin_sqrtf(norm_sq);
    } else {
      return norm_sq == 0 ? 0.0 : 1.0 / __builtin_sqrt(norm_sq);
    }
  }
};
template <class V, int n>
struct InverseNorm<Jet<V, n>> {
  static GLASS_INLINE Jet<V, n> of(const Jet<V, n>& norm_sq) {
    Jet<V, n> out;
    out.value = InverseNorm<V>::of(norm_sq.value);
    const V slope = out.value * out.value * out.value * Scalar<V>(-0.5);
    for (int k = 0; k < n; ++k) out.along[k] = slope * norm_sq.along[k];
    return out;
  }
};

// The harmonics of a unit vector (or of zero, for which all but Y_0 come out as 0 because of the factor `present`).
template <class V>
GLASS_INLINE void harmonics_of_direction(const V& x, const V& y, const V& z, const V& one, int l_max, V* out) {
  using S = Scalar<V>;
  constexpr S r3 = S(1.7320508075688772), r5 = S(2.23606797749979), r7 = S(2.6457513110645907);
  constexpr S r15 = S(3.872983346207417), r_21_8 = S(1.6201851746019651), r_105_4 = S(5.1234753829797992);
  constexpr S r_35_8 = S(2.0916500663351889), r_45_8 = S(2.3717082451262845), r_45_16 = S(1.6770509831248424);
  constexpr S r_315_8 = S(6.2749501990055663), r_315_64 = S(2.2185299186623562);
  out[0] = (x + y + z) * S(0) + one;  // 1, or NaN for a vector that is not finite
  if (l_max < 1) return;
  out[1] = x * r3;
  out[2] = y * r3;
  out[3] = z * r3;
  if (l_max < 2) return;
  const V y_sq = y * y, present = x * x + y_sq + z * z;
  const V re2 = z * z - x * x, im2 = x * z * S(2);
  out[4] = im2 * (r15 / 2);
  out[5] = x * y * r15;
  out[6] = (y_sq * S(3) - present) * (r5 / 2);
  out[7] = y * z * r15;
  out[8] = re2 * (r15 / 2);
  if (l_max < 3) return;
  const V re3 = z * re2 - x * im2, im3 = x * re2 + z * im2, p31 = y_sq * S(5) - present;
  out[9] = im3 * r_35_8;
  out[10] = y * im2 * r_105_4;
  out[11] = p31 * x * r_21_8;
  out[12] = (y_sq * S(5) - present * S(3)) * y * (r7 / 2);
  out[13] = p31 * z * r_21_8;
  out[14] = y * re2 * r_105_4;
  out[15] = re3 * r_35_8;
  if (l_max < 4) return;
  const V re4 = re2 * re2 - im2 * im2, im4 = re2 * im2 * S(2);
  const V p42 = y_sq * S(7) - present, p41 = (y_sq * S(7) - present * S(3)) * y;
  out[16] = im4 * r_315_64;
  out[17] = y * im3 * r_315_8;
  out[18] = p42 * im2 * r_45_16;
  out[19] = p41 * x * r_45_8;
  out[20] = (y_sq * y_sq * S(35) - y_sq * S(30) + present * S(3)) * S(0.375);
  out[21] = p41 * z * r_45_8;
  out[22] = p42 * re2 * r_45_16;
  out[23] = y * re3 * r_315_8;
  out[24] = re4 * r_315_64;
}

// The harmonics of the direction of `r`; V may be a jet. out: n_harmonics(l_max).
// The direction does not change with the length, so the vector is first divided by its largest component, as a constant: its
// square neither overflows nor vanishes, and derivatives, of order 1/|r|, are right wherever they can be represented.
template <class V>
GLASS_INLINE void spherical_harmonics(const V* r, const V& one, int l_max, V* out) {
  using P = Plain<V>;
  const typename P::type factor = InverseSize<typename P::type>::of(P::of(r[0]), P::of(r[1]), P::of(r[2]));
  const V x = P::times(r[0], factor), y = P::times(r[1], factor), z = P::times(r[2], factor);
  const V scale = InverseNorm<V>::of(x * x + y * y + z * z);
  harmonics_of_direction(x * scale, y * scale, z * scale, one, l_max, out);
}

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
