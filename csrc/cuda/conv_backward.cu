// Gradients of the convolution: one kernel over the rows for the weights, the harmonics or vectors, and a message per edge for
// the source features; then every node gathers its messages in the fixed order of the transpose index (conv_reduce.cu).
//
// Work: as in conv_forward.cu. In this direction the gradient g of a row is shared by all its edges, so each lane contracts the
// coupling with g once per row and item, Q[in][sh] = sum_out C g, and keeps Q in registers; per edge, with t[sh] = sum_in x Q,
//   grad w = <t, Y>     grad Y += w t     grad x = w (Q Y)
// Gradients of Y are summed over channels by exchanges, and over items in shared memory, then contracted with dY/dr.
// Bytes per edge: those of the forward pass, gradients of what is per edge, 2 x 4 dim_in for the message,
// and 8 rank n_weights for the warp's sums of `mix`, once for each tile. Flops per edge and
// channel: 4 (entries of Q) + 2 (2 d_sh + d_in) per path, at l_max 3 about 3200; 4 rank per weight. Bound by instruction issue.
// Deterministic: no atomics, every sum in a fixed order. The formula: csrc/core/conv.h, csrc/cpu/conv_backward.cpp.
#include "conv_gradients.cuh"
#include "conv_reduce.h"

namespace glassconv {
namespace {

constexpr int kSteps = 4;   // edges per lane and tile
constexpr int kBlocks = 3;  // of a multiprocessor, for the tiles' shared memory

// (3, 3) with all of its paths would need 114 registers for Q alone.
template <class T, bool high>
inline constexpr auto kSets = list_path_sets<high, sizeof(T) == sizeof(float) ? 110 : 0>();

template <class T>
struct BackwardTile {
  EdgeTile<T> edges;
  T* x;
  WeightTile<kSteps, T> weights;  // then their gradients
  GradientTile<T> gradients;

  GLASS_HD static BackwardTile take(const ConvPlan& plan, SharedPieces& shared) {
    return {EdgeTile<T>::take(plan, shared), shared.take<T>(plan.tile_edges * plan.x_stride),
            WeightTile<kSteps, T>::take(shared), GradientTile<T>::take(plan, shared)};
  }
};

struct Wanted {
  bool x, sh;
};

// The gradients that the tile's edges get from one item; `tile.weights` are replaced by their gradients.
template <PathSet set, class T>
__device__ __forceinline__ void add_item(const ConvPlan& plan, const ConvChunk& chunk, const ConvItem& item,
                                         const BackwardTile<T>& tile, int n_edges, Wanted wanted, const T* grad_row) {
  using Set = generic::CoupledSet<set>;
  constexpr int d_in = Set::d_in, d_sh = Set::d_sh;
  const Packing lane(chunk, static_cast<int>(threadIdx.x) % kWarp);
  T matrix[Set::n_pairs] = {};
  if (lane.is_active) {
    for_each_constant<Set::n_paths>([&](auto path) {
      constexpr int d_out = Set::template d_out<path()>;
      const T* const g = grad_row + item.out[path()] + (chunk.first_channel + lane.channel) * d_out;
      T gradient[d_out];
#pragma unroll
      for (int m = 0; m < d_out; ++m) gradient[m] = g[m];
      Set::template Gradient<path()>::template form<T>(gradient, matrix + Set::first_pair(path()));
    });
  }
  const int n_steps = lane.n_steps(n_edges);
#pragma unroll 1
  for (int step = 0; step < n_steps; ++step) {
    const int e = step * lane.n_slots + lane.slot;
    const bool is_active = lane.is_active && e < n_edges;
    T grad_sh[bit_ceil(d_sh)] = {};
    if (is_active) {
      T x[d_in], y[d_sh], grad_x[d_in] = {};
      const int at = e * chunk.stride + lane.channel * d_in;
#pragma unroll
      for (int m = 0; m < d_in; ++m) x[m] = tile.x[at + m];
      load_padded<d_sh>(tile.edges.sh + e * plan.sh_stride + item.sh, y);
      for_each_constant<Set::n_paths>([&](auto path) {
        using Gradient = typename Set::template Gradient<path()>;
        const T* const q = matrix + Set::first_pair(path());
        const T weight = tile.weights.at(step, path());
        T along_sh[d_sh] = {}, along_x[d_in] = {}, grad_weight = T(0);
        Gradient::from_rows(x, q, along_sh);
        Gradient::from_cols(y, q, along_x);
#pragma unroll
        for (int m = 0; m < d_sh; ++m) {
          grad_weight += along_sh[m] * y[m];
          grad_sh[m] += weight * along_sh[m];
        }
#pragma unroll
        for (int m = 0; m < d_in; ++m) grad_x[m] += weight * along_x[m];
        tile.weights.at(step, path()) = grad_weight;
      });
      if (wanted.x) {
#pragma unroll
        for (int m = 0; m < d_in; ++m) tile.gradients.x[at + m] += grad_x[m];
      }
    } else {
      for (int path = 0; path < Set::n_paths; ++path) tile.weights.at(step, path) = T(0);
    }
    if (wanted.sh) {
      add_channel_sums<bit_ceil(d_sh)>(lane, e < n_edges, grad_sh, d_sh, tile.gradients.sh + e * plan.sh_stride + item.sh);
    }
  }
}

template <class T, bool high>
struct BackwardWarp {
  const ConvInput<T>& in;
  const ConvPlan& plan;
  const GradientTargets<T>& to;
  const BackwardTile<T>& tile;

  // The edges [first, first + n) of a row, all chunks of a part.
  __device__ __forceinline__ void run_tile(int64_t first, int n, int part, const T* grad_row, T* mix) const {
    load_edges(in, plan, first, n, tile.edges);
    clear_rows(tile.gradients.sh, n * plan.sh_stride);
    clear_rows(tile.gradients.radial, n * plan.rank_stride);
    for (int c = plan.part_begin[part]; c < plan.part_begin[part + 1]; ++c) {
      const ConvChunk& chunk = plan.chunks[c];
      load_features(in.x, in.dim_in, chunk, n, tile.edges.source, tile.x);
      clear_rows(tile.gradients.x, n * chunk.stride);
      for (int i = chunk.first_item; i < chunk.item_end; ++i) run_item(chunk, plan.items[i], n, grad_row, mix);
      __syncwarp();
      if (to.messages != nullptr) store_messages(to, chunk, first, n, tile.gradients.x);
      __syncwarp();
    }
    const int64_t skipped = (to.first_part + part) * in.n_edges;
    if (to.angular != nullptr) {
      T* const out = to.angular + skipped * in.angular_width();
      if (in.given_sh) {
        store_harmonics(in, plan, n, tile.edges, tile.gradients.sh, out);
      } else {
        store_vectors(plan, n, tile.edges, tile.gradients.sh, out);
      }
    }
    if (to.radial != nullptr) store_radial(in, plan, n, tile.edges, tile.gradients.radial, to.radial + skipped * in.rank);
    __syncwarp();
  }

  __device__ __forceinline__ void run_item(const ConvChunk& chunk, const ConvItem& item, int n, const T* grad_row,
                                           T* mix) const {
    WeightSource<kSteps, T> weights;
    if (in.rank > 0) {
      weights.first = {tile.edges.radial, in.mix};
    } else {
      weights.explicit_weights = in.weight;
    }
    weights.load(in, plan, chunk, item, n, tile.edges.edge, tile.weights);
    __syncwarp();  // the last item's sums may have been added by other lanes
    const Wanted wanted = {to.messages != nullptr, to.angular != nullptr};
    dispatch<0, static_cast<int>(kSets<T, high>.size())>(
        item.kind, [&](auto kind) { add_item<kSets<T, high>[kind()]>(plan, chunk, item, tile, n, wanted, grad_row); });
    if (to.weight != nullptr) store_weights(in, chunk, item, n, tile.edges.edge, tile.weights, to.weight);
    if (to.radial != nullptr) add_to_radial(in, plan, chunk, item, n, tile.weights, {tile.gradients.radial, in.mix});
    if (mix != nullptr) add_to_mix(in, plan, chunk, item, n, tile.edges.radial, tile.weights, mix);
  }
};

template <class T, bool high>
__global__ void __launch_bounds__(kConvThreads, sizeof(T) == sizeof(float) ? 3 : 2)
    conv_backward_kernel(const __grid_constant__ ConvInput<T> in, const __grid_constant__ ConvPlan plan,
                         const __grid_constant__ GradientTargets<T> to, const T* grad_out) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  SharedPieces counted(nullptr);
  BackwardTile<T>::take(plan, counted);
  SharedPieces shared(shared_memory() + warp * counted.used());
  const BackwardTile<T> tile = BackwardTile<T>::take(plan, shared);
  const int64_t first_row = int64_t{blockIdx.x} * kWarpsPerBlock + warp, row_step = int64_t{gridDim.x} * kWarpsPerBlock;
  T* const mix = to.mix == nullptr ? nullptr : to.mix + first_row * in.rank * in.n_weights;
  const BackwardWarp<T, high> work = {in, plan, to, tile};
  for (int64_t row = first_row; row < in.n_nodes; row += row_step) {
    const int64_t begin = in.row_ptr[row], end = in.row_ptr[row + 1];
    for (int64_t first = begin; first < end; first += plan.tile_edges) {
      const int n = static_cast<int>(end - first < plan.tile_edges ? end - first : plan.tile_edges);
      work.run_tile(first, n, static_cast<int>(blockIdx.y), grad_out + row * in.dim_out, mix);
    }
  }
}

}  // namespace

template <class T>
size_t conv_backward_cuda_workspace(const ConvInput<T>& input, const ConvGradients<T>& gradients) {
  return GradientPlan<T>(input, gradients, plan_options<BackwardTile<T>>(kSets<T, false>, kSets<T, true>, kSteps, kBlocks))
      .workspace_bytes();
}

template <class T>
void conv_backward_cuda(const ConvInput<T>& input, const T* grad_out, const ConvGradients<T>& gradients, void* workspace,
                        void* stream) {
  GradientPlan<T> plan(input, gradients, plan_options<BackwardTile<T>>(kSets<T, false>, kSets<T, true>, kSteps, kBlocks));
  plan.begin(workspace, static_cast<cudaStream_t>(stream));
  plan.for_each_launch([&](const ConvPlan& part, const GradientTargets<T>& to, dim3 blocks) {
    launch(tile_launch<BackwardTile<T>>("conv_backward_kernel", part, blocks, stream),
           part.high ? conv_backward_kernel<T, true> : conv_backward_kernel<T, false>, input, part, to, grad_out);
  });
  plan.finish(static_cast<cudaStream_t>(stream));
}

template size_t conv_backward_cuda_workspace<float>(const ConvInput<float>&, const ConvGradients<float>&);
template size_t conv_backward_cuda_workspace<double>(const ConvInput<double>&, const ConvGradients<double>&);
template void conv_backward_cuda<float>(const ConvInput<float>&, const float*, const ConvGradients<float>&, void*, void*);
template void conv_backward_cuda<double>(const ConvInput<double>&, const double*, const ConvGradients<double>&, void*, void*);

}  // namespace glassconv
