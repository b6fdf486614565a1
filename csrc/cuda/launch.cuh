// The only way a kernel is launched, and the errors of the CUDA runtime.
//
// Written against the runtime's own C++ interface, so that tests/emulated can run the same file without a GPU.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../core/platform.h"

namespace glassconv {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // which the runtime keeps, and CUB would take for an error of its own
  throw std::runtime_error(std::string("glassconv: ") + what + ": " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + ")");
}

// Shared memory that a block on the current device can ask for.
inline int max_shared_bytes() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

struct LaunchShape {
  const char* kernel;  // for the error message
  dim3 blocks;
  int threads;
  size_t shared_bytes;  // dynamic; what a kernel shares it asks for here, so that nothing of it has a size by itself
  cudaStream_t stream;
};

// Launches unless there is nothing to do, and checks at once.
template <class... Parameters, class... Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  constexpr size_t granted = 48 * 1024;  // more has to be asked for
  if (shape.blocks.x == 0 || shape.blocks.y == 0 || shape.blocks.z == 0) return;
  if (shape.shared_bytes > granted) {
    // All that the device has, not this launch's share: another thread may be about to launch the same kernel with more.
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    max_shared_bytes()),
               shape.kernel);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.blocks;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), shape.kernel);
}

// Blocks of `per_block` items that cover n items.
inline dim3 blocks_for(int64_t n, int64_t per_block) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  if (blocks > 0x7fffffff) throw std::invalid_argument("glassconv: too many items for one launch");
  return dim3(static_cast<unsigned>(blocks));
}

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char glassconv_shared_memory[];
  return glassconv_shared_memory;
}

}  // namespace glassconv
