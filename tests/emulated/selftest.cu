// Small kernels, right ones and wrong ones, that show what the emulator catches (tests/test_emulator.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "../../csrc/cuda/launch.cuh"
#include "runtime.h"

namespace py = pybind11;

namespace glassconv {
namespace {

enum class Barrier { none, warp, block };

__device__ void wait(Barrier barrier) {
  if (barrier == Barrier::warp) __syncwarp();
  if (barrier == Barrier::block) __syncthreads();
}

// Each thread reads what another one wrote: right with a barrier between.
template <class T>
__global__ void reverse_kernel(Barrier barrier, T* values) {
  T* const shared = reinterpret_cast<T*>(shared_memory());
  const unsigned i = threadIdx.x, n = blockDim.x;
  shared[i] = values[i];
  wait(barrier);
  values[i] = shared[n - 1 - i];
}

// Each thread reads its neighbor's number, and then changes its own: right with barriers on both sides of the reading.
__global__ void shift_kernel(int n_rounds, Barrier barrier_after_reading, int* values) {
  int* const shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  shared[i] = values[i];
  for (int round = 0; round < n_rounds; ++round) {
    __syncthreads();
    const int neighbor = shared[(i + 1) % blockDim.x];
    wait(barrier_after_reading);
    shared[i] = neighbor;
  }
  values[i] = shared[i];
}

__global__ void read_shared_kernel(double* as_double, float* as_float) {
  as_double[threadIdx.x] = reinterpret_cast<const double*>(shared_memory())[threadIdx.x];
  as_float[threadIdx.x] = reinterpret_cast<const float*>(shared_memory())[2 * threadIdx.x];
}

__global__ void write_shared_kernel(int offset) { shared_memory()[offset] = 1; }

__global__ void write_global_kernel(int offset, unsigned char* memory) { memory[offset] = 1; }

__global__ void add_kernel(int number, int* values) { values[threadIdx.x] += number; }

// The order in which threads arrive, over all blocks.
__global__ void arrival_kernel(int* counter, int* order) {
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  order[atomicAdd(counter, 1)] = item;
}

__global__ void before_and_after_kernel(int* counter, int* order) {
  order[atomicAdd(counter, 1)] = static_cast<int>(threadIdx.x);
  __syncthreads();
  order[atomicAdd(counter, 1)] = static_cast<int>(threadIdx.x);
}

enum class Divergence {
  none,
  branch_of_block,      // half of the threads pass by __syncthreads
  return_before_block,  // one thread has returned
  branch_of_warp,
  return_before_shuffle,
  two_collectives,  // lanes of one mask at different collectives
  not_in_mask,
  source_not_in_mask,
  sub_masks,  // allowed
};

__global__ void divergent_kernel(Divergence divergence, int* out) {
  const unsigned i = threadIdx.x, half = i < 16 ? 0x0000ffffu : 0xffff0000u;
  const int value = static_cast<int>(i);
  switch (divergence) {
    case Divergence::none:
      __syncthreads();
      break;
    case Divergence::branch_of_block:
      if (i < blockDim.x / 2) __syncthreads();
      break;
    case Divergence::return_before_block:
      if (i == 5) return;
      __syncthreads();
      break;
    case Divergence::branch_of_warp:
      if (i % 2 == 0) __syncwarp();
      break;
    case Divergence::return_before_shuffle:
      if (i == 31) return;
      out[i] = __shfl_xor_sync(kAllLanes, value, 1);
      break;
    case Divergence::two_collectives:
      if (i < 16) {
        out[i] = __any_sync(kAllLanes, value);
      } else {
        out[i] = __all_sync(kAllLanes, value);
      }
      break;
    case Divergence::not_in_mask:
      out[i] = __shfl_sync(0x7fffffffu, value, 0);
      break;
    case Divergence::source_not_in_mask:
      out[i] = __shfl_xor_sync(half, value, 16);
      break;
    case Divergence::sub_masks:
      for (int round = 0; round < (i < 16 ? 3 : 5); ++round) out[i] = __shfl_xor_sync(half, value + round, 1);
      __syncwarp();
      break;
  }
}

// Collectives in a row, so that fast lanes are ahead of slow ones: out[c][thread].
template <class T>
__global__ void collectives_kernel(int width, const T* values, int64_t* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  const T value = values[i];
  const int own = static_cast<int>(threadIdx.x % kWarp);
  out[0 * n + i] = static_cast<int64_t>(__shfl_sync(kAllLanes, value, 5 * own + 3, width));
  out[1 * n + i] = static_cast<int64_t>(__shfl_up_sync(kAllLanes, value, 3, width));
  out[2 * n + i] = static_cast<int64_t>(__shfl_down_sync(kAllLanes, value, 3, width));
  out[3 * n + i] = static_cast<int64_t>(__shfl_xor_sync(kAllLanes, value, 5, width));
  out[4 * n + i] = __ballot_sync(kAllLanes, value > 0);
  out[5 * n + i] = __any_sync(kAllLanes, value > 40);
  out[6 * n + i] = __all_sync(kAllLanes, value > -40);
  // sums over the halves of the warp, each of its own mask
  const unsigned half = own < 16 ? 0x0000ffffu : 0xffff0000u;
  T sum = value;
  for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(half, sum, step);
  out[7 * n + i] = static_cast<int64_t>(sum);
}

template <class T>
__global__ void atomics_kernel(const T* values, T* results) {
  const T value = values[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&results[0], value);
  atomicMin(&results[1], value);
  atomicMax(&results[2], value);
  atomicOr(&results[3], value);
  // adds by comparing and swapping
  T seen = results[4];
  for (;;) {
    const T before = atomicCAS(&results[4], seen, seen + value);
    if (before == seen) break;
    seen = before;
  }
}

__global__ void indices_kernel(int* count) {
  const dim3 g = gridDim, b = blockDim;
  const unsigned block = (blockIdx.z * g.y + blockIdx.y) * g.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * b.y + threadIdx.y) * b.x + threadIdx.x;
  count[block * b.x * b.y * b.z + thread] += 1;
}

__global__ void deep_kernel(int depth, int* out) {
  volatile unsigned char frame[1024];
  frame[0] = static_cast<unsigned char>(depth);
  if (depth > 0) deep_kernel(depth - 1, out);
  out[threadIdx.x] = frame[0];
}

__global__ void nothing_kernel() {}

__global__ void switches_kernel(int n, int* out) {
  unsigned value = threadIdx.x;
  for (int i = 0; i < n; ++i) value += __shfl_xor_sync(kAllLanes, value, 1 << (i % 5));
  out[threadIdx.x] = static_cast<int>(value);
}

LaunchShape shape(const char* kernel, int64_t n_blocks, int threads, size_t shared_bytes = 0) {
  return {kernel, dim3(static_cast<unsigned>(n_blocks)), threads, shared_bytes, nullptr};
}

template <class T>
std::vector<T> reverse(std::vector<T> values, Barrier barrier) {
  const int n = static_cast<int>(values.size());
  launch(shape("reverse_kernel", 1, n, values.size() * sizeof(T)), reverse_kernel<T>, barrier, values.data());
  return values;
}

std::vector<int> shift(std::vector<int> values, int n_rounds, Barrier after_reading) {
  const int n = static_cast<int>(values.size());
  launch(shape("shift_kernel", 1, n, values.size() * sizeof(int)), shift_kernel, n_rounds, after_reading, values.data());
  return values;
}

auto read_shared(int n) {
  std::vector<double> as_double(n);
  std::vector<float> as_float(n);
  launch(shape("read_shared_kernel", 1, n, n * sizeof(double)), read_shared_kernel, as_double.data(), as_float.data());
  return std::pair(as_double, as_float);
}

void write_shared(int64_t n_bytes, int offset) {
  launch(shape("write_shared_kernel", 1, 32, static_cast<size_t>(n_bytes)), write_shared_kernel, offset);
}

void write_global(int64_t n_bytes, int offset) {
  const auto memory = std::make_unique<unsigned char[]>(static_cast<size_t>(n_bytes));
  launch(shape("write_global_kernel", 1, 32), write_global_kernel, offset, memory.get());
}

std::vector<int> add(std::vector<int> values, int number) {
  launch(shape("add_kernel", 1, static_cast<int>(values.size())), add_kernel, number, values.data());
  return values;
}

std::vector<int> arrivals(int n_blocks, int threads) {
  int counter = 0;
  std::vector<int> order(static_cast<size_t>(n_blocks) * threads);
  launch(shape("arrival_kernel", n_blocks, threads), arrival_kernel, &counter, order.data());
  return order;
}

std::vector<int> before_and_after(int threads) {
  int counter = 0;
  std::vector<int> order(2 * static_cast<size_t>(threads));
  launch(shape("before_and_after_kernel", 1, threads), before_and_after_kernel, &counter, order.data());
  return order;
}

std::vector<int> divergent(Divergence divergence, int threads) {
  std::vector<int> out(threads, -1);
  launch(shape("divergent_kernel", 1, threads), divergent_kernel, divergence, out.data());
  return out;
}

template <class T>
std::vector<std::vector<int64_t>> collectives(const std::vector<T>& values, int threads, int width) {
  const size_t n = values.size(), n_collectives = 8;
  std::vector<int64_t> out(n_collectives * n);
  launch(shape("collectives_kernel", static_cast<int64_t>(n) / threads, threads), collectives_kernel<T>, width, values.data(),
         out.data());
  std::vector<std::vector<int64_t>> rows;
  for (size_t c = 0; c < n_collectives; ++c) rows.emplace_back(out.begin() + c * n, out.begin() + (c + 1) * n);
  return rows;
}

template <class T>
std::vector<T> atomics(const std::vector<T>& values, int threads, std::vector<T> start) {
  launch(shape("atomics_kernel", static_cast<int64_t>(values.size()) / threads, threads), atomics_kernel<T>, values.data(),
         start.data());
  return start;
}

using Three = std::array<unsigned, 3>;

std::vector<int> indices(const Three& grid, const Three& threads) {
  std::vector<int> count(size_t{grid[0]} * grid[1] * grid[2] * threads[0] * threads[1] * threads[2]);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid[0], grid[1], grid[2]);
  config.blockDim = dim3(threads[0], threads[1], threads[2]);
  check_cuda(cudaLaunchKernelEx(&config, indices_kernel, count.data()), "indices_kernel");
  return count;
}

std::vector<int> deep(int depth, int threads) {
  std::vector<int> out(threads);
  launch(shape("deep_kernel", 1, threads), deep_kernel, depth, out.data());
  return out;
}

// The error of a launch, by name; `allow` is asked for before, where it is not negative.
std::string launch_error(const Three& grid, int threads, int64_t shared_bytes, int64_t allow) {
  cudaGetLastError();
  if (allow >= 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(allow));
    if (error != cudaSuccess) return std::string("attribute: ") + cudaGetErrorName(error);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid[0], grid[1], grid[2]);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  const cudaError_t error = cudaLaunchKernelEx(&config, nothing_kernel);
  if (cudaGetLastError() != error || cudaGetLastError() != cudaSuccess) return "another last error";
  return cudaGetErrorName(error);
}

void switches(int n_blocks, int threads, int n) {
  std::vector<int> out(threads);
  launch(shape("switches_kernel", n_blocks, threads), switches_kernel, n, out.data());
}

}  // namespace
}  // namespace glassconv

PYBIND11_MODULE(_selftest, m) {
  using namespace glassconv;
  py::enum_<Barrier>(m, "Barrier").value("none", Barrier::none).value("warp", Barrier::warp).value("block", Barrier::block);
  py::enum_<Divergence>(m, "Divergence")
      .value("none", Divergence::none)
      .value("branch_of_block", Divergence::branch_of_block)
      .value("return_before_block", Divergence::return_before_block)
      .value("branch_of_warp", Divergence::branch_of_warp)
      .value("return_before_shuffle", Divergence::return_before_shuffle)
      .value("two_collectives", Divergence::two_collectives)
      .value("not_in_mask", Divergence::not_in_mask)
      .value("source_not_in_mask", Divergence::source_not_in_mask)
      .value("sub_masks", Divergence::sub_masks);
  m.def("reverse", &reverse<float>);
  m.def("shift", &shift);
  m.def("read_shared", &read_shared);
  m.def("write_shared", &write_shared);
  m.def("write_global", &write_global);
  m.def("add", &add);
  m.def("arrivals", &arrivals);
  m.def("before_and_after", &before_and_after);
  m.def("divergent", &divergent);
  m.def("collectives_int", &collectives<int>);
  m.def("collectives_float", &collectives<float>);
  m.def("collectives_double", &collectives<double>);
  m.def("collectives_int64", &collectives<long long>);
  m.def("atomics_int", &atomics<int>);
  m.def("atomics_unsigned", &atomics<unsigned>);
  m.def("atomics_uint64", &atomics<unsigned long long>);
  m.def("indices", &indices);
  m.def("deep", &deep);
  m.def("launch_error", &launch_error);
  m.def("switches", &switches);
  m.def("restart_random", &emulated::restart_random);
}
