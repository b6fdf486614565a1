// Device functions: barriers, warp collectives, atomics, and arithmetic with a rounding by name.
//
// A warp collective makes the lanes of its mask wait for each other, which on a GPU is __syncwarp's work alone: a __syncwarp missing
// beside a collective is not noticed here.
#pragma once

#include <bit>

namespace emulated {

enum class Wait : unsigned char {
  nothing,
  exited,
  syncthreads,
  syncwarp,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  ballot,
  any,
  all,
};

void wait_for_block();
// Waits for the lanes of `mask` to arrive at the same collective. Shuffles return the value of lane `source`, votes the lanes of the
// mask whose value is not zero.
uint64_t wait_for_lanes(Wait collective, unsigned mask, uint64_t value = 0, unsigned source = 0);
unsigned lane();

// The lane a shuffle reads, in groups of `width`; a source outside of the group means the own lane.
inline unsigned source_lane(int wanted, int width) {
  const int own = static_cast<int>(lane()), first = own / width * width;
  return static_cast<unsigned>(wanted < first || wanted >= first + width ? own : wanted);
}

template <class T>
auto shuffle(Wait kind, unsigned mask, T value, unsigned source) {
  using Word = decltype(+value);  // as in CUDA, smaller integers become int
  static_assert(std::is_arithmetic_v<Word> && (sizeof(Word) == 4 || sizeof(Word) == 8));
  const Word word = value;
  uint64_t bits = 0;
  std::memcpy(&bits, &word, sizeof(Word));
  bits = wait_for_lanes(kind, mask, bits, source);
  Word result;
  std::memcpy(&result, &bits, sizeof(Word));
  return result;
}

template <class T, class... Types>
concept OneOf = (std::is_same_v<T, Types> || ...);
// the types of the atomics in use; sums of floating-point numbers would depend on the order
template <class T>
concept Atomic = OneOf<T, int, unsigned, unsigned long long>;
template <class T>
using Same = std::type_identity_t<T>;

}  // namespace emulated

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::wait_for_lanes(emulated::Wait::syncwarp, mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
auto __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = static_cast<int>(emulated::lane()) / width * width;
  return emulated::shuffle(emulated::Wait::shfl, mask, value, static_cast<unsigned>(first + (source & (width - 1))));
}
template <class T>
auto __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int wanted = static_cast<int>(emulated::lane()) - static_cast<int>(delta);
  return emulated::shuffle(emulated::Wait::shfl_up, mask, value, emulated::source_lane(wanted, width));
}
template <class T>
auto __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int wanted = static_cast<int>(emulated::lane()) + static_cast<int>(delta);
  return emulated::shuffle(emulated::Wait::shfl_down, mask, value, emulated::source_lane(wanted, width));
}
template <class T>
auto __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int own = static_cast<int>(emulated::lane()), wanted = own ^ lane_mask;
  // unlike the others, an exchange may read the groups before its own
  const bool inside = wanted < own / width * width + width;
  return emulated::shuffle(emulated::Wait::shfl_xor, mask, value, static_cast<unsigned>(inside ? wanted : own));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(emulated::wait_for_lanes(emulated::Wait::ballot, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) {
  return emulated::wait_for_lanes(emulated::Wait::any, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return emulated::wait_for_lanes(emulated::Wait::all, mask, predicate != 0) == mask;
}

// One thread runs at a time, so that reading and writing cannot be interrupted.
template <emulated::Atomic T>
T atomicAdd(T* address, emulated::Same<T> value) {
  const T old = *address;
  // overflow wraps
  *address = static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) + static_cast<std::make_unsigned_t<T>>(value));
  return old;
}
template <emulated::Atomic T>
T atomicMin(T* address, emulated::Same<T> value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <emulated::Atomic T>
T atomicMax(T* address, emulated::Same<T> value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <emulated::Atomic T>
T atomicOr(T* address, emulated::Same<T> value) {
  return std::exchange(*address, *address | value);
}
template <emulated::Atomic T>
T atomicAnd(T* address, emulated::Same<T> value) {
  return std::exchange(*address, *address & value);
}
template <emulated::Atomic T>
T atomicExch(T* address, emulated::Same<T> value) {
  return std::exchange(*address, value);
}
template <emulated::Atomic T>
T atomicCAS(T* address, emulated::Same<T> expected, emulated::Same<T> value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) { return std::countl_zero(static_cast<unsigned long long>(value)); }
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1; }
inline int __ffsll(long long value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(value)) + 1; }

// The compiler is told not to contract (build.py), so that these are what they say.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int value) { return std::bit_cast<float>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long value) { return std::bit_cast<double>(value); }

template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
