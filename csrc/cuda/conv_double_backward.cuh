// Second derivatives of the convolution in one kernel over the rows, and the sums that follow it as in conv_backward.cu.
//
// Work: as in conv_forward.cu, one path at a time. With S(x, Y, w, g) = <g, conv(x, Y, w)>, linear in each argument, and cotangents
// (vx, vY, vw) of its gradients, the scalar to differentiate is T = S(vx, Y, w, g) + S(x, vY, w, g) + S(x, Y, vw, g). With
// Q = C g (per row and lane), t = x Q, tv = vx Q:
//   dT/dg = sum_edges w C (vx Y + x vY) + vw C x Y       dT/dw = <tv, Y> + <t, vY>
//   dT/dx = Q (w vY + vw Y)                              dT/dY = w tv + vw t
// For vectors r, vY = (dY/dr) vr, and Y's curvature adds sum_m (w t)_m d/dr (dY_m/dr . vr). For low-rank weights
// w = radial mix, vw = vradial mix + radial vmix, and dS/dw = <t, Y> enters the gradients of radial and mix a second time.
// Bytes per edge: about twice those of the backward pass, but for the sums of `mix`. Flops per edge and channel: about 4 couplings + 6 entries of Q + 12 d_sh
// per path, at l_max 3 about 7500. Bound by instruction issue. Deterministic: no atomics, every sum in a fixed order.
// The formula: csrc/cpu/conv_double_backward.cpp.
#pragma once

#include "conv_gradients.cuh"
#include "conv_reduce.h"

namespace glassconv {
namespace {

constexpr int kSteps = 3;   // edges per lane and tile
constexpr int kBlocks = 2;  // of a multiprocessor, for the tiles' shared memory
template <class T, bool high>
constexpr auto kSets = list_path_sets<high, 0>();

template <class T>
struct DoubleBackwardTile {
  EdgeTile<T> edges;
  T* x;
  WeightTile<kSteps, T> weights;  // then dT/dw
  // The cotangents, laid out like what they belong to.
  T* v_x;
  T* v_vectors;
  T* v_sh;
  T* v_radial;
  WeightTile<kSteps, T> v_weights;  // then dS/dw
  GradientTile<T> gradients;
  T* curvature;  // (tile_edges, sh_stride)

  GLASS_HD static DoubleBackwardTile take(const ConvPlan& plan, SharedPieces& shared) {
    const int n = plan.tile_edges;
    return {EdgeTile<T>::take(plan, shared),
            shared.take<T>(n * plan.x_stride),
            WeightTile<kSteps, T>::take(shared),
            shared.take<T>(n * plan.x_stride),
            shared.take<T>(n * 4),
            shared.take<T>(n * plan.sh_stride),
            shared.take<T>(n * plan.rank_stride),
            WeightTile<kSteps, T>::take(shared),
            GradientTile<T>::take(plan, shared),
            shared.take<T>(n * plan.sh_stride)};
  }
};

template <class T>
struct DoubleBackwardArguments {
  ConvCotangents<T> v;
  ConvOutputGradient<T> output;
};

// One item for all edges of a tile.
template <PathSet set, class T>
struct Item {
  using Set = generic::CoupledSet<set>;
  using Gradient = typename Set::template Gradient<0>;
  static constexpr int d_in = Set::d_in, d_sh = Set::d_sh, d_out = Set::n_out;

  const ConvPlan& plan;
  const ConvChunk& chunk;
  const ConvItem& item;
  const DoubleBackwardTile<T>& tile;
  int n_edges;
  Packing lane;

  struct Edge {
    T x[d_in], v_x[d_in], y[d_sh], v_y[d_sh];
  };
  __device__ __forceinline__ int first_column(int e) const { return e * chunk.stride + lane.channel * d_in; }
  __device__ __forceinline__ void load_channel(const T* rows, int e, T* out) const {
#pragma unroll
    for (int m = 0; m < d_in; ++m) out[m] = rows[first_column(e) + m];
  }
  __device__ __forceinline__ Edge load(int e) const {
    Edge edge;
    load_channel(tile.x, e, edge.x);
    load_channel(tile.v_x, e, edge.v_x);
    load_padded<d_sh>(tile.edges.sh + e * plan.sh_stride + item.sh, edge.y);
    load_padded<d_sh>(tile.v_sh + e * plan.sh_stride + item.sh, edge.v_y);
    return edge;
  }
  __device__ __forceinline__ int column() const { return item.out[0] + (chunk.first_channel + lane.channel) * d_out; }

  // dT/dg
  __device__ __forceinline__ void add_outputs(bool is_first, T* out_row) const {
    T sums[d_out] = {};
    if (lane.is_active) {
      int step = 0;
#pragma unroll 1
      for (int e = lane.slot; e < n_edges; e += lane.n_slots, ++step) {
        const Edge edge = load(e);
        const T w = tile.weights.at(step, 0), v_w = tile.v_weights.at(step, 0);
        T scaled_y[d_sh], scaled_v[d_sh];  // of x and of vx
#pragma unroll
        for (int m = 0; m < d_sh; ++m) scaled_y[m] = w * edge.v_y[m] + v_w * edge.y[m], scaled_v[m] = w * edge.y[m];
        Set::template contract<T>(
            [&](auto m_in, auto m_sh) { return edge.x[m_in()] * scaled_y[m_sh()] + edge.v_x[m_in()] * scaled_v[m_sh()]; },
            sums);
      }
    }
    sum_over_lanes<d_out>(sums, lane.n_lanes, kWarp);
    if (!lane.is_active || lane.slot != 0) return;
    T* const out = out_row + column();
    if (!is_first) {
#pragma unroll
      for (int m = 0; m < d_out; ++m) sums[m] += out[m];
    }
#pragma unroll
    for (int m = 0; m < d_out; ++m) out[m] = sums[m];
  }

  // dT/dx, dT/dY with its curvature part; weights and their cotangents are replaced by dT/dw and dS/dw.
  __device__ __forceinline__ void add_gradients(bool wants_x, bool wants_sh, const T* grad_row) const {
    T matrix[Gradient::n_pairs] = {};
    if (lane.is_active) {
      T g[d_out];
#pragma unroll
      for (int m = 0; m < d_out; ++m) g[m] = grad_row[column() + m];
      Gradient::template form<T>(g, matrix);
    }
    const int n_steps = lane.n_steps(n_edges);
#pragma unroll 1
    for (int step = 0; step < n_steps; ++step) {
      const int e = step * lane.n_slots + lane.slot;
      T grad_sh[2 * d_sh] = {};
      T* const curvature = grad_sh + d_sh;
      T grad_weight = T(0), first_weight = T(0);
      if (lane.is_active && e < n_edges) {
        const T w = tile.weights.at(step, 0), v_w = tile.v_weights.at(step, 0);
        T along[d_sh] = {}, along_v[d_sh] = {}, combined[d_sh], grad_x[d_in] = {};
        // x before vx and both before Y: at l = 4 in float64 registers do not suffice for all of them at once.
        T in[d_in], y[d_sh], v_y[d_sh];
        load_channel(tile.x, e, in);
        Gradient::from_rows(in, matrix, along);
        load_channel(tile.v_x, e, in);
        Gradient::from_rows(in, matrix, along_v);
        load_padded<d_sh>(tile.edges.sh + e * plan.sh_stride + item.sh, y);
        load_padded<d_sh>(tile.v_sh + e * plan.sh_stride + item.sh, v_y);
#pragma unroll
        for (int m = 0; m < d_sh; ++m) {
          first_weight += along[m] * y[m];
          grad_weight += along_v[m] * y[m] + along[m] * v_y[m];
          grad_sh[m] = w * along_v[m] + v_w * along[m];
          curvature[m] = w * along[m];
          combined[m] = w * v_y[m] + v_w * y[m];
        }
        Gradient::from_cols(combined, matrix, grad_x);
        if (wants_x) {
#pragma unroll
          for (int m = 0; m < d_in; ++m) tile.gradients.x[first_column(e) + m] += grad_x[m];
        }
      }
      tile.weights.at(step, 0) = grad_weight;
      tile.v_weights.at(step, 0) = first_weight;
      // Every lane gets every sum: sharing them out, as conv_backward.cu does, takes registers that float64 at l = 4 does not have.
      if (wants_sh) {
        sum_over_lanes<2 * d_sh>(grad_sh, 1, lane.n_lanes);
        if (e < n_edges && lane.channel == 0) {
          const int row = e * plan.sh_stride + item.sh;
#pragma unroll
          for (int m = 0; m < d_sh; ++m) {
            tile.gradients.sh[row + m] += grad_sh[m];
            tile.curvature[row + m] += curvature[m];
          }
        }
      }
    }
  }
};

template <class T>
struct RowOfOutput {
  const T* grad_out;
  T* grad_grad_out;  // null: not wanted
  bool is_first;     // whether this tile is the first of the row
};

template <class T, bool high>
struct DoubleBackwardWarp {
  const ConvInput<T>& in;
  const ConvPlan& plan;
  const GradientTargets<T>& to;
  const DoubleBackwardArguments<T>& arguments;
  const DoubleBackwardTile<T>& tile;

  // The cotangents of a tile's harmonics and radial features; zero where none were given.
  __device__ __forceinline__ void load_cotangents(int n) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const T* const v = arguments.v.angular;
    clear_rows(tile.v_sh, n * plan.sh_stride);
    clear_rows(tile.v_vectors, n * 4);
    __syncwarp();
    if (v != nullptr && in.given_sh) load_harmonics(in, plan, n, tile.edges.edge, v, tile.v_sh);
    if (v != nullptr && !in.given_sh) {
      for (int e = lane; e < n; e += kWarp) {
        T* const along = tile.v_vectors + 4 * e;
        T* const row = tile.v_sh + e * plan.sh_stride;
#pragma unroll
        for (int k = 0; k < 3; ++k) along[k] = v[3 * tile.edges.edge[e] + k];
        with_constant_l_max(plan.l_max, [&](auto l_max) {
          for_each_harmonic_along<l_max()>(tile.edges.vectors + 4 * e, along,
                                           [&](int l, int m, T y) { row[computed_harmonic_tile(l) + m] = y; });
        });
      }
    }
    if (arguments.v.weight != nullptr) load_radial(in, plan, n, tile.edges.edge, arguments.v.weight, tile.v_radial);
    clear_rows(tile.gradients.sh, n * plan.sh_stride);
    clear_rows(tile.curvature, n * plan.sh_stride);
    clear_rows(tile.gradients.radial, n * plan.rank_stride);
    __syncwarp();
  }

  __device__ __forceinline__ void run_tile(int64_t first, int n, int part, const RowOfOutput<T>& row, T* mix) const {
    load_edges(in, plan, first, n, tile.edges);
    load_cotangents(n);
    for (int c = plan.part_begin[part]; c < plan.part_begin[part + 1]; ++c) {
      const ConvChunk& chunk = plan.chunks[c];
      load_features(in.x, in.dim_in, chunk, n, tile.edges.source, tile.x);
      if (arguments.v.x != nullptr) {
        load_features(arguments.v.x, in.dim_in, chunk, n, tile.edges.source, tile.v_x);
      } else {
        clear_rows(tile.v_x, n * chunk.stride);
      }
      clear_rows(tile.gradients.x, n * chunk.stride);
      __syncwarp();
      for (int i = chunk.first_item; i < chunk.item_end; ++i) run_item(chunk, plan.items[i], n, row, mix);
      __syncwarp();
      if (to.messages != nullptr) store_messages(to, chunk, first, n, tile.gradients.x);
      __syncwarp();
    }
    store_edges(n, (to.first_part + part) * in.n_edges);
    __syncwarp();
  }

  __device__ __forceinline__ void store_edges(int n, int64_t skipped) const {
    if (to.angular != nullptr) {
      T* const out = to.angular + skipped * in.angular_width();
      if (in.given_sh) {
        store_harmonics(in, plan, n, tile.edges, tile.gradients.sh, out);
      } else {
        store_vectors_with_curvature(n, out);
      }
    }
    if (to.radial != nullptr) store_radial(in, plan, n, tile.edges, tile.gradients.radial, to.radial + skipped * in.rank);
  }

  __device__ __forceinline__ void store_vectors_with_curvature(int n, T* out) const {
    for (int e = static_cast<int>(threadIdx.x) % kWarp; e < n; e += kWarp) {
      const T* const r = tile.edges.vectors + 4 * e;
      const T* const first = tile.gradients.sh + e * plan.sh_stride;
      const T* const second = tile.curvature + e * plan.sh_stride;
      T gradient[3] = {};
      with_constant_l_max(plan.l_max, [&](auto l_max) {
        add_vector_gradient<l_max()>(r, gradient, [&](int l, int m) { return first[computed_harmonic_tile(l) + m]; });
        add_curvature<l_max()>(r, tile.v_vectors + 4 * e, gradient,
                               [&](int l, int m) { return second[computed_harmonic_tile(l) + m]; });
      });
#pragma unroll
      for (int k = 0; k < 3; ++k) out[3 * tile.edges.edge[e] + k] = gradient[k];
    }
  }

  __device__ __forceinline__ void load_weights(const ConvChunk& chunk, const ConvItem& item, int n) const {
    const ConvCotangents<T>& v = arguments.v;
    WeightSource<kSteps, T> weights, v_weights;
    if (in.rank > 0) {
      weights.first = {tile.edges.radial, in.mix};
      if (v.weight != nullptr) v_weights.first = {tile.v_radial, in.mix};
      if (v.mix != nullptr) v_weights.second = {tile.edges.radial, v.mix};
    } else {
      weights.explicit_weights = in.weight;
      v_weights.explicit_weights = v.weight;
    }
    weights.load(in, plan, chunk, item, n, tile.edges.edge, tile.weights);
    v_weights.load(in, plan, chunk, item, n, tile.edges.edge, tile.v_weights);
    __syncwarp();  // the last item's sums may have been added by other lanes
  }

  __device__ __forceinline__ void run_item(const ConvChunk& chunk, const ConvItem& item, int n, const RowOfOutput<T>& row,
                                           T* mix) const {
    const ConvCotangents<T>& v = arguments.v;
    load_weights(chunk, item, n);
    dispatch<0, static_cast<int>(kSets<T, high>.size())>(item.kind, [&](auto kind) {
      const Item<kSets<T, high>[kind()], T> run = {plan, chunk, item,
                                                   tile, n,     Packing(chunk, static_cast<int>(threadIdx.x) % kWarp)};
      if (row.grad_grad_out != nullptr) run.add_outputs(row.is_first, row.grad_grad_out);
      run.add_gradients(to.messages != nullptr, to.angular != nullptr, row.grad_out);
    });
    if (to.weight != nullptr) store_weights(in, chunk, item, n, tile.edges.edge, tile.weights, to.weight);
    if (to.radial != nullptr) {
      add_to_radial(in, plan, chunk, item, n, tile.weights, {tile.gradients.radial, in.mix});
      __syncwarp();
      if (v.mix != nullptr) add_to_radial(in, plan, chunk, item, n, tile.v_weights, {tile.gradients.radial, v.mix});
    }
    if (mix != nullptr) {
      add_to_mix(in, plan, chunk, item, n, tile.edges.radial, tile.weights, mix);
      if (v.weight != nullptr) add_to_mix(in, plan, chunk, item, n, tile.v_radial, tile.v_weights, mix);
    }
  }
};

template <class T, bool high>
__global__ void __launch_bounds__(kConvThreads, 2)
    conv_double_backward_kernel(const __grid_constant__ ConvInput<T> in, const __grid_constant__ ConvPlan plan,
                                const __grid_constant__ GradientTargets<T> to,
                                const __grid_constant__ DoubleBackwardArguments<T> arguments) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  SharedPieces counted(nullptr);
  DoubleBackwardTile<T>::take(plan, counted);
  SharedPieces shared(shared_memory() + warp * counted.used());
  const DoubleBackwardTile<T> tile = DoubleBackwardTile<T>::take(plan, shared);
  const int64_t first_row = int64_t{blockIdx.x} * kWarpsPerBlock + warp, row_step = int64_t{gridDim.x} * kWarpsPerBlock;
  T* const mix = to.mix == nullptr ? nullptr : to.mix + first_row * in.rank * in.n_weights;
  const DoubleBackwardWarp<T, high> work = {in, plan, to, arguments, tile};
  for (int64_t row = first_row; row < in.n_nodes; row += row_step) {
    const int64_t begin = in.row_ptr[row], end = in.row_ptr[row + 1];
    RowOfOutput<T> output = {arguments.output.grad_out + row * in.dim_out, arguments.output.grad_grad_out, true};
    if (output.grad_grad_out != nullptr) {
      output.grad_grad_out += row * in.dim_out;
      if (begin == end && blockIdx.y == 0) {
        for (int64_t column = lane; column < in.dim_out; column += kWarp) output.grad_grad_out[column] = T(0);
      }
    }
    for (int64_t first = begin; first < end; first += plan.tile_edges) {
      const int n = static_cast<int>(end - first < plan.tile_edges ? end - first : plan.tile_edges);
      output.is_first = first == begin;
      work.run_tile(first, n, static_cast<int>(blockIdx.y), output, mix);
    }
  }
}

}  // namespace

template <class T>
size_t conv_double_backward_cuda_workspace(const ConvInput<T>& input, const ConvGradients<T>& gradients) {
  return GradientPlan<T>(input, gradients,
                         plan_options<DoubleBackwardTile<T>>(kSets<T, false>, kSets<T, true>, kSteps, kBlocks))
      .workspace_bytes();
}

template <class T>
void conv_double_backward_cuda(const ConvInput<T>& input, const ConvCotangents<T>& cotangents,
                               const ConvOutputGradient<T>& output, const ConvGradients<T>& gradients, void* workspace,
                               void* stream) {
  GradientPlan<T> plan(input, gradients, plan_options<DoubleBackwardTile<T>>(kSets<T, false>, kSets<T, true>, kSteps, kBlocks));
  plan.begin(workspace, static_cast<cudaStream_t>(stream));
  plan.for_each_launch([&](const ConvPlan& part, const GradientTargets<T>& to, dim3 blocks) {
    launch(tile_launch<DoubleBackwardTile<T>>("conv_double_backward_kernel", part, blocks, stream),
           part.high ? conv_double_backward_kernel<T, true> : conv_double_backward_kernel<T, false>, input, part, to,
           DoubleBackwardArguments<T>{cotangents, output});
  });
  plan.finish(static_cast<cudaStream_t>(stream));
}

}  // namespace glassconv
