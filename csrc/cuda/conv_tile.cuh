// What the kernels of the convolution share: the tile of edges that a warp works on, and sums over its lanes.
//
// Everything here belongs to one warp. Lanes are packed as (slot, channel): n_lanes of them for the channels of one edge, and as
// many edges side by side as fit; slot s takes the edges s, s + n_slots, s + 2 n_slots, ... of the tile.
#pragma once

#include "conv_plan.h"
#include "harmonics.cuh"
#include "launch.cuh"

namespace glassconv {

inline constexpr int kConvThreads = 128, kWarpBits = 5;
inline constexpr int kWarpsPerBlock = kConvThreads / kWarp;

// The bytes of a warp's shared memory, taken piece by piece; with a null base it only counts.
class SharedPieces {
 public:
  GLASS_HD explicit SharedPieces(unsigned char* base) : base_(base) {}
  template <class T>
  GLASS_HD T* take(int n) {
    T* const piece = reinterpret_cast<T*>(base_ + used_);
    used_ += (sizeof(T) * static_cast<size_t>(n) + 15) / 16 * 16;
    return piece;
  }
  GLASS_HD size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

// Bytes of one warp's tile.
template <class Tile>
size_t tile_bytes(const ConvPlan& plan) {
  SharedPieces counted(nullptr);
  Tile::take(plan, counted);
  return counted.used();
}

// `blocks` are to have room on a multiprocessor with 228 KB of shared memory, 1 KB of it taken by each block; every GPU gives a
// block 99 KB.
template <class Tile, size_t n_low, size_t n_high>
PlanOptions plan_options(const PathSets<n_low>& low, const PathSets<n_high>& high, int edges_per_lane, int blocks) {
  const int bytes = std::min(228 * 1024 / blocks - 1024, 99 * 1024) / kWarpsPerBlock;
  return {{low.data(), high.data()},
          {static_cast<int>(n_low), static_cast<int>(n_high)},
          edges_per_lane,
          &tile_bytes<Tile>,
          static_cast<size_t>(bytes)};
}

// The shape of a launch whose warps have a tile each. Only a very high rank can make the tile of a single edge too large.
template <class Tile>
LaunchShape tile_launch(const char* kernel, const ConvPlan& plan, dim3 blocks, void* stream) {
  const size_t limit = static_cast<size_t>(max_shared_bytes());
  const size_t bytes = kWarpsPerBlock * tile_bytes<Tile>(plan);
  if (bytes > limit) {
    throw std::invalid_argument("glassconv: radial: expected fewer features on a GPU, got " + std::to_string(plan.rank) +
                                ", for which an edge's " + std::to_string(bytes / kWarpsPerBlock) +
                                " bytes exceed a warp's shared memory of " + std::to_string(limit / kWarpsPerBlock));
  }
  return {kernel, blocks, kConvThreads, bytes, static_cast<cudaStream_t>(stream)};
}

template <class T>
struct alignas(16) Four {
  T v[4];
};

// n values from a row that is 16-byte aligned and padded to whole groups of four.
template <int n, class T>
__device__ __forceinline__ void load_padded(const T* row, T* out) {
  if constexpr (n == 1) {
    out[0] = row[0];
  } else {
#pragma unroll
    for (int group = 0; group < (n + 3) / 4; ++group) {
      const Four<T> four = reinterpret_cast<const Four<T>*>(row)[group];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (4 * group + i < n) out[4 * group + i] = four.v[i];
      }
    }
  }
}

// Where this lane stands in the packing of one chunk.
struct Packing {
  int lane_bits, n_lanes, n_slots, slot, channel;
  bool is_active;

  __device__ Packing(const ConvChunk& chunk, int lane)
      : lane_bits(chunk.lane_bits),
        n_lanes(1 << lane_bits),
        n_slots(kWarp >> lane_bits),
        slot(lane >> lane_bits),
        channel(lane & (n_lanes - 1)),
        is_active(channel < chunk.n_channels) {}
  __device__ int n_steps(int n_edges) const { return (n_edges + n_slots - 1) >> (kWarpBits - lane_bits); }
};

// The edges of a tile: which they are, and their harmonics and radial features.
template <class T>
struct EdgeTile {
  int64_t* edge;  // (tile_edges)
  int* source;    // (tile_edges)
  T* vectors;     // (tile_edges, 4), for harmonics that are computed
  T* sh;          // (tile_edges, sh_stride)
  T* radial;      // (tile_edges, rank_stride)

  GLASS_HD static EdgeTile take(const ConvPlan& plan, SharedPieces& shared) {
    return {shared.take<int64_t>(plan.tile_edges), shared.take<int>(plan.tile_edges), shared.take<T>(plan.tile_edges * 4),
            shared.take<T>(plan.tile_edges * plan.sh_stride), shared.take<T>(plan.tile_edges * plan.rank_stride)};
  }
};

// Calls use(e, column) for each element of n rows of `width`, neighboring lanes on neighboring columns.
template <class Use>
__device__ __forceinline__ void for_each_element(int lane, int n_rows, int width, Use&& use) {
  int n_lanes = 1;
  while (n_lanes < width && n_lanes < kWarp) n_lanes *= 2;
  for (int e = lane / n_lanes; e < n_rows; e += kWarp / n_lanes) {
    for (int column = lane % n_lanes; column < width; column += n_lanes) use(e, column);
  }
}

// Fills rows[e * stride + column] with load(e, column), n rows of `width`. Several loads are under way at once: the compiler cannot
// know that what is stored is not what is loaded next, and would wait for each.
template <class T, class Load>
__device__ __forceinline__ void fill_rows(T* rows, int stride, int n_rows, int width, Load&& load) {
  constexpr int batch = 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int n_lanes = 1;
  while (n_lanes < width && n_lanes < kWarp) n_lanes *= 2;
  const int step = kWarp / n_lanes;
  for (int column = lane % n_lanes; column < width; column += n_lanes) {
    for (int first = lane / n_lanes; first < n_rows; first += batch * step) {
      T values[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        if (first + i * step < n_rows) values[i] = load(first + i * step, column);
      }
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        if (first + i * step < n_rows) rows[(first + i * step) * stride + column] = values[i];
      }
    }
  }
}

// Harmonics given per edge, into the tile's layout.
template <class T>
__device__ __forceinline__ void load_harmonics(const ConvInput<T>& in, const ConvPlan& plan, int n, const int64_t* edge,
                                               const T* sh, T* rows) {
  for (int b = 0; b < plan.n_harmonic_blocks; ++b) {
    const HarmonicBlock& block = plan.harmonics[b];
    fill_rows(rows + block.tile, plan.sh_stride, n, 2 * block.l + 1,
              [&](int e, int m) { return sh[edge[e] * in.dim_sh + block.column + m]; });
  }
}

template <class T>
__device__ __forceinline__ void load_radial(const ConvInput<T>& in, const ConvPlan& plan, int n, const int64_t* edge,
                                            const T* radial, T* rows) {
  const int rank = static_cast<int>(in.rank);
  if (rank == 0) return;
  fill_rows(rows, plan.rank_stride, n, rank, [&](int e, int h) { return radial[edge[e] * rank + h]; });
}

// The tile's edges from `first` on, their harmonics and radial features. Ends with a barrier of the warp.
template <class T>
__device__ __forceinline__ void load_edges(const ConvInput<T>& in, const ConvPlan& plan, int64_t first, int n,
                                           const EdgeTile<T>& tile) {
  for (int e = static_cast<int>(threadIdx.x) % kWarp; e < n; e += kWarp) {
    const int64_t edge = in.perm == nullptr ? first + e : in.perm[first + e];
    tile.edge[e] = edge;
    tile.source[e] = static_cast<int>(in.row_source[first + e]);
    if (in.given_sh) continue;
    const T r[3] = {in.angular[3 * edge], in.angular[3 * edge + 1], in.angular[3 * edge + 2]};
#pragma unroll
    for (int k = 0; k < 3; ++k) tile.vectors[4 * e + k] = r[k];
    T* const row = tile.sh + e * plan.sh_stride;
    with_constant_l_max(plan.l_max, [&](auto l_max) {
      for_each_harmonic<l_max()>(r, T(1), [&](int l, int m, T y) { row[computed_harmonic_tile(l) + m] = y; });
    });
  }
  __syncwarp();
  if (in.given_sh) load_harmonics(in, plan, n, tile.edge, in.angular, tile.sh);
  load_radial(in, plan, n, tile.edge, in.weight, tile.radial);
  __syncwarp();
}

// The source features of the tile's edges, columns of one chunk.
template <class T>
__device__ __forceinline__ void load_features(const T* x, int64_t dim_in, const ConvChunk& chunk, int n, const int* source,
                                              T* rows) {
  fill_rows(rows, chunk.stride, n, chunk.n_channels * chunk.d_in,
            [&](int e, int column) { return x[source[e] * dim_in + chunk.first_column + column]; });
}

// This lane's weights for an item: values[(step * kMaxPathsOfSet + path) * kWarp + lane], read and written by no other lane.
template <int max_steps, class T>
struct WeightTile {
  T* values;

  GLASS_HD static WeightTile take(SharedPieces& shared) { return {shared.take<T>(max_steps * kMaxPathsOfSet * kWarp)}; }
  __device__ T& at(int step, int path) const {
    return values[(step * kMaxPathsOfSet + path) * kWarp + static_cast<int>(threadIdx.x) % kWarp];
  }
};

// A factor of a low-rank product: rows of the tile times columns of a matrix in global memory.
template <class T>
struct LowRank {
  T* rows;       // (tile_edges, rank_stride) in the tile
  const T* mix;  // (rank, n_weights)
};

// sums[step] += sum_h rows[edge][h] mix[h][column] for this lane's edges.
template <int max_steps, class T>
__device__ __forceinline__ void add_product(const ConvInput<T>& in, const ConvPlan& plan, const Packing& lane, int n_steps,
                                            const LowRank<T>& factor, int64_t column, T* sums) {
  const int rank = static_cast<int>(in.rank);
  const T* const rows = factor.rows + lane.slot * plan.rank_stride;
  const int row_step = lane.n_slots * plan.rank_stride;
  const T* mix = factor.mix + column;
  int h = 0;
  for (; h + 4 <= rank; h += 4) {
    T m[4];
#pragma unroll
    for (int i = 0; i < 4; ++i, mix += in.n_weights) m[i] = *mix;
#pragma unroll
    for (int step = 0; step < max_steps; ++step) {
      if (step < n_steps) {
        T row[4];
        load_padded<4>(rows + step * row_step + h, row);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[step] += row[i] * m[i];
      }
    }
  }
  for (; h < rank; ++h, mix += in.n_weights) {
    const T m = *mix;
#pragma unroll
    for (int step = 0; step < max_steps; ++step) {
      if (step < n_steps) sums[step] += rows[step * row_step + h] * m;
    }
  }
}

// Fills the weights of an item: `explicit_weights` (n_edges, n_weights) where not null, plus the products.
template <int max_steps, class T>
struct WeightSource {
  const T* explicit_weights = nullptr;
  LowRank<T> first = {}, second = {};  // absent where `rows` is null

  __device__ __forceinline__ void load(const ConvInput<T>& in, const ConvPlan& plan, const ConvChunk& chunk,
                                       const ConvItem& item, int n_edges, const int64_t* edge,
                                       const WeightTile<max_steps, T>& tile) const {
    const Packing lane(chunk, static_cast<int>(threadIdx.x) % kWarp);
    const int n_steps = lane.n_steps(n_edges);
#pragma unroll 1
    for (int path = 0; path < item.n_paths; ++path) {
      T sums[max_steps] = {};
      if (lane.is_active) {
        const int64_t column = item.weight[path] + chunk.first_channel + lane.channel;
        if (explicit_weights != nullptr) {
#pragma unroll
          for (int step = 0; step < max_steps; ++step) {
            const int e = step * lane.n_slots + lane.slot;
            if (e < n_edges) sums[step] = explicit_weights[edge[e] * in.n_weights + column];
          }
        }
        const int own_steps = lane.n_steps(n_edges - lane.slot);  // slots behind the tile's edges have no rows to read
        if (first.rows != nullptr) add_product<max_steps>(in, plan, lane, own_steps, first, column, sums);
        if (second.rows != nullptr) add_product<max_steps>(in, plan, lane, own_steps, second, column, sums);
      }
#pragma unroll
      for (int step = 0; step < max_steps; ++step) {
        if (step < n_steps) tile.at(step, path) = sums[step];
      }
    }
  }
};

// Sums over the lanes whose numbers differ in the bits low, 2 low, ..., high / 2 alone.
template <int n, class T>
__device__ __forceinline__ void sum_over_lanes(T* values, int low, int high) {
#pragma unroll 1
  for (int bit = low; bit < high; bit *= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] += __shfl_xor_sync(kAllLanes, values[i], bit);
  }
}

// The same sums, shared out: as long as there are values to share, partners exchange half of theirs, so that n values cost about
// n exchanges instead of n for each bit. Afterwards values[0 .. count) of this lane are those from `first` on.
struct Share {
  int first = 0, count = 0;
  bool is_owner = true;  // the one lane of those that hold the same sums
};

template <int n>  // a power of two
__device__ __forceinline__ Share share_of_lane(int low, int high) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Share share;
  share.count = n;
  for (int bit = low; bit < high; bit *= 2) {
    const bool upper = (lane & bit) != 0;
    if (share.count > 1) {
      share.count /= 2;
      if (upper) share.first += share.count;
    } else if (upper) {
      share.is_owner = false;
    }
  }
  return share;
}

template <int n, class T>
__device__ __forceinline__ void share_sums(T* values, int low, int high) {
  if constexpr (n == 1) {
    sum_over_lanes<1>(values, low, high);
  } else if (low < high) {
    const bool upper = (static_cast<int>(threadIdx.x) & low) != 0;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const T kept = upper ? values[i + n / 2] : values[i], sent = upper ? values[i] : values[i + n / 2];
      values[i] = kept + __shfl_xor_sync(kAllLanes, sent, low);
    }
    share_sums<n / 2>(values, 2 * low, high);
  }
}

// Calls f.template operator()<kind>() for the constant `kind` that equals the given one, by bisection.
template <int begin, int end, class F>
__device__ __forceinline__ void dispatch(int kind, F&& f) {
  if constexpr (end - begin == 1) {
    f(std::integral_constant<int, begin>{});
  } else {
    constexpr int middle = (begin + end) / 2;
    if (kind < middle) {
      dispatch<begin, middle>(kind, f);
    } else {
      dispatch<middle, end>(kind, f);
    }
  }
}

inline constexpr int bit_ceil(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace glassconv
