// The choice of instruction set at run time, and the entry points that use it.
#include "isa.h"
#include "neighbors_rows.h"

#include <cstdlib>
#include <cstring>

namespace glassconv {
namespace {

enum class Isa { kPlain, kAvx2, kAvx512 };

Isa widest_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx2 && avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kPlain;
#else
  return Isa::kPlain;
#endif
}

Isa choose_isa() {
  const Isa widest = widest_isa();
  const char* const wanted = std::getenv("GLASSCONV_ISA");
  if (wanted == nullptr) return widest;
  if (std::strcmp(wanted, "plain") == 0) return Isa::kPlain;
  if (std::strcmp(wanted, "avx2") == 0 && widest != Isa::kPlain) return Isa::kAvx2;
  return widest;
}

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

}  // namespace

const char* active_isa() { return isa() == Isa::kAvx512 ? "avx512" : isa() == Isa::kAvx2 ? "avx2" : "plain"; }

#if defined(__x86_64__)
#define GLASSCONV_DISPATCH(function, ...)   \
  switch (isa()) {                          \
    case Isa::kAvx512:                      \
      return avx512::function(__VA_ARGS__); \
    case Isa::kAvx2:                        \
      return avx2::function(__VA_ARGS__);   \
    default:                                \
      return plain::function(__VA_ARGS__);  \
  }
#else
#define GLASSCONV_DISPATCH(function, ...) return plain::function(__VA_ARGS__);
#endif

template <class T>
bool conv_forward_cpu(const ConvInput<T>& input, T* out, const Executor& executor) {
  GLASSCONV_DISPATCH(conv_forward, input, out, executor)
}
template <class T>
bool conv_backward_cpu(const ConvInput<T>& input, const T* grad_out, const ConvGradients<T>& gradients,
                       const Executor& executor) {
  GLASSCONV_DISPATCH(conv_backward, input, grad_out, gradients, executor)
}
template <class T>
bool conv_double_backward_cpu(const ConvInput<T>& input, const ConvCotangents<T>& cotangents, const T* grad_out,
                              T* grad_grad_out, const ConvGradients<T>& gradients, const Executor& executor) {
  GLASSCONV_DISPATCH(conv_double_backward, input, cotangents, grad_out, grad_grad_out, gradients, executor)
}
template <class T>
bool spherical_harmonics_cpu(const HarmonicsArrays<T>& arrays, const Executor& executor) {
  GLASSCONV_DISPATCH(spherical_harmonics_of, arrays, executor)
}

const RowKernels& row_kernels() {
  static const RowKernels kernels = [] { GLASSCONV_DISPATCH(row_kernels) }();
  return kernels;
}

#define GLASSCONV_INSTANTIATE(T)                                                                               \
  template bool conv_forward_cpu<T>(const ConvInput<T>&, T*, const Executor&);                                 \
  template bool conv_backward_cpu<T>(const ConvInput<T>&, const T*, const ConvGradients<T>&, const Executor&); \
  template bool conv_double_backward_cpu<T>(const ConvInput<T>&, const ConvCotangents<T>&, const T*, T*,       \
                                            const ConvGradients<T>&, const Executor&);                         \
  template bool spherical_harmonics_cpu<T>(const HarmonicsArrays<T>&, const Executor&);
GLASSCONV_INSTANTIATE(float) GLASSCONV_INSTANTIATE(double)

}  // namespace glassconv
