// Spherical harmonics of a list of vectors, on their own: the torch-free entry points. See spherical_harmonics.h.
#pragma once

#include "platform.h"

namespace glassconv {

// Arrays are contiguous: vectors, along, grad_vectors (n, 3); sh, grad_sh, sh_along (n, (l_max + 1)^2).
template <class T>
struct HarmonicsArrays {
  int64_t n = 0;
  int l_max = 0;
  const T* vectors = nullptr;
  const T* along = nullptr;    // direction of the second derivative
  const T* grad_sh = nullptr;  // cotangent of the harmonics
  T* sh = nullptr;             // Y, or with `along`: dY/dr . along
  T* grad_vectors = nullptr;   // sum_m grad_sh_m dY_m/dr, or with `along`: sum_m grad_sh_m d/dr (dY_m/dr . along)
};

// Fills the outputs that are not null. Returns false when working memory could not be had.
template <class T>
bool spherical_harmonics_cpu(const HarmonicsArrays<T>& arrays, const Executor& executor);

// The same in device memory, queued on `stream` (a cudaStream_t) of the current device.
template <class T>
void spherical_harmonics_cuda(const HarmonicsArrays<T>& arrays, void* stream);

}  // namespace glassconv
