// Device-wide scan and sort; see device_primitives.h. The only file that uses CUB.
//
// Work: CUB's own. Bytes: the scan reads and writes 16 for each value; the sort moves 16 for each pair and each 8 bits of the key.
// Deterministic: integer sums, stable radix sort.
#include "device_primitives.h"

#include "launch.cuh"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#else
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>
#endif

namespace glassconv {

#if defined(__CUDACC__)

size_t exclusive_scan_workspace(int64_t n) {
  size_t bytes = 0;
  int64_t* none = nullptr;
  check_cuda(cub::DeviceScan::ExclusiveSum(nullptr, bytes, none, none, n), "exclusive scan");
  return bytes;
}

void exclusive_scan(int64_t* values, int64_t n, PrimitiveWorkspace workspace, cudaStream_t stream) {
  check_cuda(cub::DeviceScan::ExclusiveSum(workspace.memory, workspace.bytes, values, values, n, stream), "exclusive scan");
}

size_t sort_pairs_workspace(int32_t n, int key_bits) {
  size_t bytes = 0;
  uint32_t* keys = nullptr;
  int32_t* values = nullptr;
  check_cuda(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, keys, values, values, n, 0, key_bits), "radix sort");
  return bytes;
}

void sort_pairs(const KeyValuePairs& pairs, int32_t n, int key_bits, PrimitiveWorkspace workspace, cudaStream_t stream) {
  check_cuda(cub::DeviceRadixSort::SortPairs(workspace.memory, workspace.bytes, pairs.keys, pairs.sorted_keys, pairs.values,
                                             pairs.sorted_values, n, 0, key_bits, stream),
             "radix sort");
}

#else  // the emulated backend, which needs no memory, but asks for some and writes to it: so a lack of it is found out

size_t exclusive_scan_workspace(int64_t n) { return static_cast<size_t>(n) + 1000; }

void exclusive_scan(int64_t* values, int64_t n, PrimitiveWorkspace workspace, cudaStream_t) {
  check_cuda(cudaGetLastError(), "exclusive scan");  // CUB's own habit, errors of others included
  std::memset(workspace.memory, 0xab, exclusive_scan_workspace(n));
  int64_t sum = 0;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t before = sum;
    if (k + 1 < n) sum += values[k];
    values[k] = before;
  }
}

size_t sort_pairs_workspace(int32_t n, int) { return 8 * static_cast<size_t>(n) + 1000; }

void sort_pairs(const KeyValuePairs& pairs, int32_t n, int key_bits, PrimitiveWorkspace workspace, cudaStream_t) {
  check_cuda(cudaGetLastError(), "radix sort");
  std::memset(workspace.memory, 0xab, sort_pairs_workspace(n, key_bits));
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return pairs.keys[a] < pairs.keys[b]; });
  for (int32_t k = 0; k < n; ++k) {
    pairs.sorted_keys[k] = pairs.keys[order[static_cast<size_t>(k)]];
    pairs.sorted_values[k] = pairs.values[order[static_cast<size_t>(k)]];
  }
}

#endif

}  // namespace glassconv
