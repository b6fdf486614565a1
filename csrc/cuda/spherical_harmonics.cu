// Spherical harmonics of a list of vectors, and their first and second derivatives.
//
// Work: a thread per vector. Bytes per vector (float32): 12 and 4 (l_max + 1)^2 in the values and as much again for what is
// contracted with them; flops about 10 per harmonic, times 4 for first and 8 for second derivatives. Bound by
// memory accesses: a thread's harmonics lie side by side, its neighbors' a row apart.
// Deterministic. The formula: csrc/core/spherical_harmonics.h.
#include "../core/spherical_harmonics_op.h"

#include "harmonics.cuh"

namespace glassconv {
namespace {

constexpr int kThreads = 128;

template <int l_max, class T>
__device__ __forceinline__ void fill(const HarmonicsArrays<T>& arrays, int64_t i) {
  constexpr int width = n_harmonics(l_max);
  const T r[3] = {arrays.vectors[3 * i], arrays.vectors[3 * i + 1], arrays.vectors[3 * i + 2]};
  T along[3] = {};
  if (arrays.along != nullptr) {
#pragma unroll
    for (int k = 0; k < 3; ++k) along[k] = arrays.along[3 * i + k];
  }
  if (arrays.sh != nullptr) {
    const auto store = [&](int l, int m, const T& value) { arrays.sh[i * width + l * l + m] = value; };
    if (arrays.along == nullptr) {
      for_each_harmonic<l_max>(r, T(1), store);
    } else {
      for_each_harmonic_along<l_max>(r, along, store);
    }
  }
  if (arrays.grad_vectors != nullptr) {
    T gradient[3] = {};
    const auto grad = [&](int l, int m) { return arrays.grad_sh[i * width + l * l + m]; };
    if (arrays.along == nullptr) {
      add_vector_gradient<l_max>(r, gradient, grad);
    } else {
      add_curvature<l_max>(r, along, gradient, grad);
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) arrays.grad_vectors[3 * i + k] = gradient[k];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) spherical_harmonics_kernel(const __grid_constant__ HarmonicsArrays<T> arrays) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < arrays.n) with_constant_l_max(arrays.l_max, [&](auto l_max) { fill<l_max()>(arrays, i); });
}

}  // namespace

template <class T>
void spherical_harmonics_cuda(const HarmonicsArrays<T>& arrays, void* stream) {
  launch({"spherical_harmonics_kernel", blocks_for(arrays.n, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)},
         spherical_harmonics_kernel<T>, arrays);
}

template void spherical_harmonics_cuda<float>(const HarmonicsArrays<float>&, void*);
template void spherical_harmonics_cuda<double>(const HarmonicsArrays<double>&, void*);

}  // namespace glassconv
