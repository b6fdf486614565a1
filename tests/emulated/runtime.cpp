// The emulated CUDA runtime: launches, with checks of what was asked for and of what the kernel did; memory; errors.
#include "runtime.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>

#include "block.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {
namespace {

// of compute capability 9.0
constexpr size_t kSharedDefault = 48 * 1024, kSharedMax = 227 * 1024, kSharedOfMultiprocessor = 228 * 1024;
constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535, kMaxBlockZ = 64;
constexpr int kMultiprocessors = 4, kThreadsOfMultiprocessor = 2048;
constexpr size_t kGuardBytes = 1024;
// Both are numbers that cannot be mistaken for results, as float and as double; the guard's is not written by chance.
constexpr unsigned char kPoison = 0xff;
constexpr uint32_t kGuard = 0x7fffffff;

std::mutex running;  // there is one shared memory
std::map<const void*, size_t> shared_allowed;
uint64_t n_launches = 0;
cudaError_t last_error = cudaSuccess;
std::string launch_failure;

}  // namespace
}  // namespace emulated

namespace glassconv {
// What launch.cuh declares. Behind the bytes that a kernel asked for stands a guard.
alignas(16) unsigned char glassconv_shared_memory[emulated::kSharedMax + emulated::kGuardBytes];
}  // namespace glassconv

namespace emulated {
namespace {

unsigned char* const shared = glassconv::glassconv_shared_memory;

uint64_t environment_seed() {
  const char* const text = std::getenv("GLASSCONV_EMULATED_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// The guard, whose words start at multiples of four from the beginning of the shared memory.
const unsigned char* guard(size_t n_bytes) {
  static const auto words = [] {
    std::array<uint32_t, kGuardBytes / 4 + 1> filled;
    filled.fill(kGuard);
    return filled;
  }();
  return reinterpret_cast<const unsigned char*>(words.data()) + n_bytes % 4;
}

void poison_shared(size_t n_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared, kSharedMax + kGuardBytes);
#endif
  std::memset(shared, kPoison, n_bytes);
  std::memcpy(shared + n_bytes, guard(n_bytes), kGuardBytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(shared + n_bytes, kSharedMax + kGuardBytes - n_bytes);
#endif
}

// The first byte behind the shared memory that was written to.
std::optional<size_t> find_overrun(size_t n_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared, kSharedMax + kGuardBytes);
#endif
  const unsigned char* const expected = guard(n_bytes);
  if (std::memcmp(shared + n_bytes, expected, kGuardBytes) == 0) return std::nullopt;
  return n_bytes + static_cast<size_t>(std::mismatch(expected, expected + kGuardBytes, shared + n_bytes).first - expected);
}

cudaError_t check_shape(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, threads = config.blockDim;
  const uint64_t n_threads = uint64_t{threads.x} * threads.y * threads.z;
  const bool sized = grid.x > 0 && grid.y > 0 && grid.z > 0 && n_threads > 0;
  if (!sized || grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  if (n_threads > kMaxThreads || threads.z > kMaxBlockZ) return cudaErrorInvalidConfiguration;
  const auto allowed = shared_allowed.find(kernel);
  if (config.dynamicSmemBytes > (allowed == shared_allowed.end() ? kSharedDefault : allowed->second)) {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

// A stride that visits every block.
uint64_t draw_stride(uint64_t n_blocks) {
  if (n_blocks <= 2) return 1;
  for (;;) {
    const uint64_t stride = 1 + block.random.below(static_cast<uint32_t>(std::min<uint64_t>(n_blocks - 1, 0xffffffff)));
    if (std::gcd(stride, n_blocks) == 1) return stride;
  }
}

}  // namespace

void restart_random() { n_launches = 0; }

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*), void* arguments) {
  const std::scoped_lock lock(running);
  if (const cudaError_t error = check_shape(config, kernel); error != cudaSuccess) return remember(error);
  // Another order at each launch: what depends on it does not come out twice the same.
  block.random.seed(environment_seed() * 1000003 + n_launches++);
  gridDim = config.gridDim, blockDim = config.blockDim;
  const unsigned n_threads = blockDim.x * blockDim.y * blockDim.z;
  const uint64_t n_blocks = uint64_t{gridDim.x} * gridDim.y * gridDim.z, stride = draw_stride(n_blocks);
  uint64_t number = block.random.below(static_cast<uint32_t>(std::min<uint64_t>(n_blocks, 0xffffffff)));
  for (uint64_t i = 0; i < n_blocks; ++i, number = (number + stride) % n_blocks) {
    blockIdx = {static_cast<unsigned>(number % gridDim.x), static_cast<unsigned>(number / gridDim.x % gridDim.y),
                static_cast<unsigned>(number / (uint64_t{gridDim.x} * gridDim.y))};
    poison_shared(config.dynamicSmemBytes);
    bool fine = block.run(n_threads, body, arguments);
    if (const auto overrun = find_overrun(config.dynamicSmemBytes); fine && overrun.has_value()) {
      block.error = block.where() + "write to byte " + std::to_string(*overrun) + " of " +
                    std::to_string(config.dynamicSmemBytes) + " bytes of shared memory";
      fine = false;
    }
    if (!fine) {
      launch_failure = block.error;
      return remember(cudaErrorLaunchFailure);
    }
  }
  return cudaSuccess;
}

}  // namespace emulated

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return emulated::launch_failure.c_str();
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return std::exchange(emulated::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return emulated::last_error; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulated::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = emulated::kThreadsOfMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulated::kSharedOfMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulated::kSharedMax;
      return cudaSuccess;
  }
  return emulated::remember(cudaErrorInvalidValue);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // a wish, without an effect on results
  if (value < 0 || static_cast<size_t>(value) > emulated::kSharedMax) return emulated::remember(cudaErrorInvalidValue);
  const std::scoped_lock lock(emulated::running);
  emulated::shared_allowed[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int byte, size_t n_bytes, cudaStream_t) {
  if (n_bytes > 0) std::memset(memory, byte, n_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n_bytes, cudaMemcpyKind, cudaStream_t) {
  if (n_bytes > 0) std::memcpy(to, from, n_bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
