// The instruction sets for which the CPU kernels are compiled, and the choice among them at run time.
#pragma once

#include "../core/conv.h"
#include "../core/spherical_harmonics_op.h"

namespace glassconv {

#define GLASSCONV_DECLARE_CPU_KERNELS(isa)                                                                        \
  namespace isa {                                                                                                 \
  template <class T>                                                                                              \
  bool conv_forward(const ConvInput<T>&, T*, const Executor&);                                                    \
  template <class T>                                                                                              \
  bool conv_backward(const ConvInput<T>&, const T*, const ConvGradients<T>&, const Executor&);                    \
  template <class T>                                                                                              \
  bool conv_double_backward(const ConvInput<T>&, const ConvCotangents<T>&, const T*, T*, const ConvGradients<T>&, \
                            const Executor&);                                                                     \
  template <class T>                                                                                              \
  bool spherical_harmonics_of(const HarmonicsArrays<T>&, const Executor&);                                        \
  }

GLASSCONV_DECLARE_CPU_KERNELS(plain)
GLASSCONV_DECLARE_CPU_KERNELS(avx2)
GLASSCONV_DECLARE_CPU_KERNELS(avx512)
#undef GLASSCONV_DECLARE_CPU_KERNELS

// The widest of "plain", "avx2" and "avx512" that this machine runs, or the one that GLASSCONV_ISA in the environment names
// (a level above the machine's is ignored). Read once.
const char* active_isa();

}  // namespace glassconv
