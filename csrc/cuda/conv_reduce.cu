// What remains after the gradient kernels: every node gathers the messages of its outgoing edges, and sums of warps and parts are
// added up.
//
// conv_gather_kernel: a warp per node and 32 columns, lanes on columns. Reads each message once, 4 bytes per element (float32), one
// addition each: bound by bandwidth. sum_parts_kernel: lanes on elements, warps of a block on parts. Both add in a fixed order.
#include "conv_reduce.h"

namespace glassconv {
namespace {

constexpr int kGatherWarps = 8;
constexpr int kMaxSumWarps = 16;
// Warps that keep sums over edges for `mix`, each (rank, n_weights): as many as 64 MB hold, but not fewer than 256, since columns, not
// rows, are then so many that parts make up for it. Constants, so that the result does not depend on the device.
constexpr int64_t kMixWarps = 2048, kLeastMixWarps = 256;
constexpr int64_t kMixBytes = int64_t{64} << 20;

template <class T>
__global__ void __launch_bounds__(kGatherWarps* kWarp)
    conv_gather_kernel(const __grid_constant__ ConvInput<T> in, const __grid_constant__ ReadColumns columns, const T* messages,
                       int64_t message_width, T* grad_x) {
  const int64_t groups = (columns.width + kWarp - 1) / kWarp, block = blockIdx.x;
  const int64_t node = block / groups * kGatherWarps + threadIdx.x / kWarp;
  const int64_t column = block % groups * kWarp + threadIdx.x % kWarp;
  if (node >= in.n_nodes || column >= columns.width) return;
  const T* const from = messages + columns.message + column;
  const int64_t end = in.transpose_ptr[node + 1];
  T sum = T(0);
#pragma unroll 4
  for (int64_t k = in.transpose_ptr[node]; k < end; ++k) sum += from[in.transpose_slots[k] * message_width];
  grad_x[node * in.dim_in + columns.first + column] = sum;
}

// sum[i] = parts[0][i] + parts[1][i] + ...; each warp of a block adds a range of the parts, the first one their sums.
template <class T>
__global__ void __launch_bounds__(kMaxSumWarps* kWarp) sum_parts_kernel(const T* parts, int64_t n_parts, int64_t n, T* sum) {
  T* const sums = reinterpret_cast<T*>(shared_memory());  // (warps, 32)
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int n_warps = static_cast<int>(blockDim.x) / kWarp;
  const int64_t i = int64_t{blockIdx.x} * kWarp + lane;
  const int64_t end = n_parts * (warp + 1) / n_warps;
  T total = T(0);
  if (i < n) {
#pragma unroll 8
    for (int64_t part = n_parts * warp / n_warps; part < end; ++part) total += parts[part * n + i];
  }
  sums[threadIdx.x] = total;
  __syncthreads();
  if (warp > 0 || i >= n) return;
  for (int other = 1; other < n_warps; ++other) total += sums[other * kWarp + lane];
  sum[i] = total;
}

template <class T>
void sum_parts(const T* parts, int64_t n_parts, int64_t n, T* sum, cudaStream_t stream) {
  if (n == 0) return;
  const int n_warps = bit_ceil(static_cast<int>(std::clamp<int64_t>(n_parts / 4, 1, kMaxSumWarps)));
  const size_t shared_bytes = sizeof(T) * static_cast<size_t>(n_warps * kWarp);
  launch({"sum_parts_kernel", blocks_for(n, kWarp), n_warps * kWarp, shared_bytes, stream}, sum_parts_kernel<T>, parts, n_parts,
         n, sum);
}

template <class T>
void clear(T* array, int64_t n, cudaStream_t stream) {
  if (array == nullptr || n == 0) return;
  check_cuda(cudaMemsetAsync(array, 0, sizeof(T) * static_cast<size_t>(n), stream), "memset");
}

size_t aligned(int64_t bytes) { return (static_cast<size_t>(bytes) + 255) / 256 * 256; }

}  // namespace

template <class T>
GradientPlan<T>::GradientPlan(const ConvInput<T>& input, const ConvGradients<T>& gradients, const PlanOptions& options)
    : in_(input), out_(gradients), n_warps_(input.n_nodes) {
  if (out_.mix != nullptr) {
    const int64_t bytes = std::max<int64_t>(in_.rank * in_.n_weights * static_cast<int64_t>(sizeof(T)), 1);
    n_warps_ = std::min({n_warps_, kMixWarps, std::max(kLeastMixWarps, kMixBytes / bytes)});
  }
  n_warps_ = (n_warps_ + kWarpsPerBlock - 1) / kWarpsPerBlock * kWarpsPerBlock;
  plans_ = make_plans(input, options, n_warps_);  // fewer warps on the rows are made up for by parts
}

template <class T>
typename GradientPlan<T>::Pieces GradientPlan<T>::pieces() const {
  const int64_t size = static_cast<int64_t>(sizeof(T)), n_parts = plans_.n_parts();
  const bool has_radial = in_.rank > 0 && out_.weight != nullptr;
  Pieces p;
  p.messages = out_.x == nullptr ? 0 : aligned(size * in_.n_edges * plans_.message_width);
  p.angular = out_.angular == nullptr || n_parts == 1 ? 0 : aligned(size * n_parts * in_.n_edges * in_.angular_width());
  p.radial = !has_radial || n_parts == 1 ? 0 : aligned(size * n_parts * in_.n_edges * in_.rank);
  p.mix = out_.mix == nullptr ? 0 : aligned(size * n_warps_ * in_.rank * in_.n_weights);
  p.total = p.messages + p.angular + p.radial + p.mix;
  return p;
}

template <class T>
size_t GradientPlan<T>::workspace_bytes() const {
  return pieces().total;
}

template <class T>
void GradientPlan<T>::begin(void* workspace, cudaStream_t stream) {
  const Pieces p = pieces();
  const int n_parts = plans_.n_parts();
  unsigned char* const base = static_cast<unsigned char*>(workspace);
  const auto at = [&](size_t offset) { return reinterpret_cast<T*>(base + offset); };
  targets_.message_width = plans_.message_width;
  if (out_.x != nullptr) targets_.messages = at(0);
  if (out_.angular != nullptr) targets_.angular = n_parts == 1 ? out_.angular : at(p.messages);
  if (in_.rank > 0) {
    if (out_.weight != nullptr) targets_.radial = n_parts == 1 ? out_.weight : at(p.messages + p.angular);
    if (out_.mix != nullptr) targets_.mix = at(p.messages + p.angular + p.radial);
  } else {
    targets_.weight = out_.weight;
  }
  clear(targets_.mix, n_warps_ * in_.rank * in_.n_weights, stream);
  // harmonics that no path uses
  if (in_.given_sh) clear(targets_.angular, n_parts * in_.n_edges * in_.dim_sh, stream);
  // input blocks that no path uses
  if (plans_.message_width < in_.dim_in) clear(out_.x, in_.n_nodes * in_.dim_in, stream);
}

template <class T>
void GradientPlan<T>::finish(cudaStream_t stream) {
  const int64_t n_parts = plans_.n_parts();
  for (const ReadColumns& columns : plans_.columns) {
    if (out_.x == nullptr) break;
    const int64_t groups = (columns.width + kWarp - 1) / kWarp;
    const dim3 blocks = blocks_for((in_.n_nodes + kGatherWarps - 1) / kGatherWarps * groups, 1);
    launch({"conv_gather_kernel", blocks, kGatherWarps * kWarp, 0, stream}, conv_gather_kernel<T>, in_, columns,
           static_cast<const T*>(targets_.messages), plans_.message_width, out_.x);
  }
  if (n_parts != 1 && out_.angular != nullptr) {
    sum_parts<T>(targets_.angular, n_parts, in_.n_edges * in_.angular_width(), out_.angular, stream);
  }
  if (n_parts != 1 && in_.rank > 0 && out_.weight != nullptr) {
    sum_parts<T>(targets_.radial, n_parts, in_.n_edges * in_.rank, out_.weight, stream);
  }
  if (out_.mix != nullptr) sum_parts<T>(targets_.mix, n_warps_, in_.rank * in_.n_weights, out_.mix, stream);
}

template class GradientPlan<float>;
template class GradientPlan<double>;

}  // namespace glassconv
