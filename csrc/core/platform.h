// Host/device annotations and the few types that every part of the core shares. No torch, no CUDA runtime.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define GLASS_HD __host__ __device__
#define GLASS_INLINE __host__ __device__ __forceinline__
#else
#define GLASS_HD
#define GLASS_INLINE inline __attribute__((always_inline))
#endif

// The core bodies are compiled once per instruction set. Each copy has a namespace of its own: with one name for all, the
// linker would keep a single copy, and the plain path could end up running AVX-512 code.
#ifndef GLASSCONV_ISA
#define GLASSCONV_ISA generic
#endif

namespace glassconv {

// How the CPU schedules get their threads without knowing whose they are: `run` calls body(context, task) once for each task
// in [0, n_tasks), in any order, on at most n_threads threads. A null `run` means: one after the other, on this thread.
struct Executor {
  int n_threads = 1;
  void (*run)(void* self, int64_t n_tasks, void (*body)(void* context, int64_t task), void* context) = nullptr;
  void* self = nullptr;

  void operator()(int64_t n_tasks, void (*body)(void* context, int64_t task), void* context) const {
    if (run != nullptr && n_threads > 1 && n_tasks > 1) {
      run(self, n_tasks, body, context);
    } else {
      for (int64_t task = 0; task < n_tasks; ++task) body(context, task);
    }
  }
};

}  // namespace glassconv
