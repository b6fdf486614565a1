// The device-wide algorithms that kernels need, from CUB; in the emulated backend, from the standard library.
// Deterministic, and stable where it matters. No wait for the GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace glassconv {

// Each primitive asks for memory of its own: `bytes` from the function above it, `memory` aligned to 256.
struct PrimitiveWorkspace {
  void* memory;
  size_t bytes;
};

// values[k] becomes the sum of the values before it; what values[n - 1] held does not matter.
size_t exclusive_scan_workspace(int64_t n);
void exclusive_scan(int64_t* values, int64_t n, PrimitiveWorkspace workspace, cudaStream_t stream);

// Keys below 2^key_bits with the values that belong to them; the input is kept.
struct KeyValuePairs {
  const uint32_t* keys;
  const int32_t* values;
  uint32_t* sorted_keys;
  int32_t* sorted_values;
};

// Stable.
size_t sort_pairs_workspace(int32_t n, int key_bits);
void sort_pairs(const KeyValuePairs& pairs, int32_t n, int key_bits, PrimitiveWorkspace workspace, cudaStream_t stream);

}  // namespace glassconv
