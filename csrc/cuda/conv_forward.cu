// Forward convolution: harmonics, low-rank weights, tensor product and sum over edges in one kernel.
//
// Work: a warp owns a row (receiving node), or one of its parts (blockIdx.y) in small graphs. Per tile of edges it stages the
// harmonics and radial features, per chunk of channels the source features; lanes are (edge slot, channel). Each item, a set of
// paths with common input and harmonic, sums its edges in registers, then over the slots, and adds to the row of the output.
// Bytes per edge: vectors 12 (or harmonics 4 dim_sh), source 8, radial 4 rank (or weights 4 n_weights), x 4 dim_in from L2;
// per row 4 dim_out. Flops per edge and channel: 2 (couplings + products of inputs + outputs), at l_max 3 about 2000, and
// 2 rank per weight. Bound by instruction issue; shared memory delivers about half of what it could.
// Deterministic: no atomics, every sum in a fixed order. The formula: csrc/core/conv.h.
#include "conv_tile.cuh"

namespace glassconv {
namespace {

constexpr int kSteps = 6;   // edges per lane and tile
constexpr int kBlocks = 4;  // of a multiprocessor, for the tiles' shared memory

template <class T, bool high>
inline constexpr auto kSets = list_path_sets<high, sizeof(T) == sizeof(float) ? 1000 : 0>();

template <class T>
struct ForwardTile {
  EdgeTile<T> edges;
  T* x;
  WeightTile<kSteps, T> weights;

  GLASS_HD static ForwardTile take(const ConvPlan& plan, SharedPieces& shared) {
    return {EdgeTile<T>::take(plan, shared), shared.take<T>(plan.tile_edges * plan.x_stride),
            WeightTile<kSteps, T>::take(shared)};
  }
};

// The contribution of the tile's edges to the outputs of one item.
template <PathSet set, class T>
__device__ __forceinline__ void add_item(const ConvPlan& plan, const ConvChunk& chunk, const ConvItem& item,
                                         const ForwardTile<T>& tile, int n_edges, bool is_first, T* out_row) {
  using Set = generic::CoupledSet<set>;
  constexpr int d_in = Set::d_in, d_sh = Set::d_sh;
  const Packing lane(chunk, static_cast<int>(threadIdx.x) % kWarp);
  T sums[Set::n_out] = {};
  if (lane.is_active) {
    const T* x_row = tile.x + lane.slot * chunk.stride + lane.channel * d_in;
    const T* sh_row = tile.edges.sh + lane.slot * plan.sh_stride + item.sh;
    int step = 0;
#pragma unroll 1
    for (int e = lane.slot; e < n_edges; e += lane.n_slots, ++step) {
      T x[d_in], y[d_sh], message[Set::n_out] = {};
#pragma unroll
      for (int m = 0; m < d_in; ++m) x[m] = x_row[m];
      load_padded<d_sh>(sh_row, y);
      Set::template contract<T>([&](auto m_in, auto m_sh) { return x[m_in()] * y[m_sh()]; }, message);
      for_each_constant<Set::n_paths>([&](auto path) {
        const T weight = tile.weights.at(step, path());
#pragma unroll
        for (int m = 0; m < Set::template d_out<path()>; ++m) {
          sums[Set::first_out(path()) + m] += weight * message[Set::first_out(path()) + m];
        }
      });
      x_row += lane.n_slots * chunk.stride;
      sh_row += lane.n_slots * plan.sh_stride;
    }
  }
  sum_over_lanes<Set::n_out>(sums, lane.n_lanes, kWarp);
  if (!lane.is_active || lane.slot != 0) return;
  const auto for_each_output = [&](auto&& use) {
    for_each_constant<Set::n_paths>([&](auto path) {
      constexpr int d_out = Set::template d_out<path()>;
      T* const out = out_row + item.out[path()] + (chunk.first_channel + lane.channel) * d_out;
#pragma unroll
      for (int m = 0; m < d_out; ++m) use(out[m], sums[Set::first_out(path()) + m]);
    });
  };
  // all loads before the first store, which the compiler would have to take for one of them
  if (!is_first) for_each_output([](const T& out, T& sum) { sum += out; });
  for_each_output([](T& out, const T& sum) { out = sum; });
}

template <class T, bool high>
__global__ void __launch_bounds__(kConvThreads, 4)
    conv_forward_kernel(const __grid_constant__ ConvInput<T> in, const __grid_constant__ ConvPlan plan, T* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  SharedPieces counted(nullptr);
  ForwardTile<T>::take(plan, counted);
  SharedPieces shared(shared_memory() + warp * counted.used());
  const ForwardTile<T> tile = ForwardTile<T>::take(plan, shared);
  const int part = static_cast<int>(blockIdx.y);
  const int64_t row = int64_t{blockIdx.x} * kWarpsPerBlock + warp;
  if (row >= in.n_nodes) return;
  const int64_t begin = in.row_ptr[row], end = in.row_ptr[row + 1];
  T* const out_row = out + row * in.dim_out;
  if (begin == end && part == 0) {
    for (int64_t column = lane; column < in.dim_out; column += kWarp) out_row[column] = T(0);
  }
  WeightSource<kSteps, T> weights;
  if (in.rank > 0) {
    weights.first = {tile.edges.radial, in.mix};
  } else {
    weights.explicit_weights = in.weight;
  }
  for (int64_t first = begin; first < end; first += plan.tile_edges) {
    const int n = static_cast<int>(end - first < plan.tile_edges ? end - first : plan.tile_edges);
    load_edges(in, plan, first, n, tile.edges);
    for (int c = plan.part_begin[part]; c < plan.part_begin[part + 1]; ++c) {
      const ConvChunk& chunk = plan.chunks[c];
      load_features(in.x, in.dim_in, chunk, n, tile.edges.source, tile.x);
      __syncwarp();
      for (int i = chunk.first_item; i < chunk.item_end; ++i) {
        const ConvItem& item = plan.items[i];
        weights.load(in, plan, chunk, item, n, tile.edges.edge, tile.weights);
        dispatch<0, static_cast<int>(kSets<T, high>.size())>(item.kind, [&](auto kind) {
          add_item<kSets<T, high>[kind()]>(plan, chunk, item, tile, n, first == begin, out_row);
        });
      }
      __syncwarp();
    }
  }
}

}  // namespace

template <class T>
void conv_forward_cuda(const ConvInput<T>& input, T* out, void* stream) {
  const ConvPlans plans =
      make_plans(input, plan_options<ForwardTile<T>>(kSets<T, false>, kSets<T, true>, kSteps, kBlocks), input.n_nodes);
  for (const ConvPlan& plan : plans.plans) {
    dim3 blocks = blocks_for(input.n_nodes, kWarpsPerBlock);
    blocks.y = static_cast<unsigned>(plan.n_parts);
    launch(tile_launch<ForwardTile<T>>("conv_forward_kernel", plan, blocks, stream),
           plan.high ? conv_forward_kernel<T, true> : conv_forward_kernel<T, false>, input, plan, out);
  }
}

template void conv_forward_cuda<float>(const ConvInput<float>&, float*, void*);
template void conv_forward_cuda<double>(const ConvInput<double>&, double*, void*);

}  // namespace glassconv
