// What the gradient kernels share: where gradients go, and the way there from the tile of a warp.
#pragma once

#include "conv_tile.cuh"

namespace glassconv {

// A warp's sums over the edges it has met, or a part's over its paths, wait in arrays of their own; conv_reduce.h adds them up.
template <class T>
struct GradientTargets {
  T* messages = nullptr;  // (n_edges, message_width), by slot: gradients of the source features
  int64_t message_width = 0;
  T* angular = nullptr;  // (n_parts, n_edges, angular_width)
  T* weight = nullptr;   // (n_edges, n_weights), explicit weights
  T* radial = nullptr;   // (n_parts, n_edges, rank)
  T* mix = nullptr;      // (n_warps, rank, n_weights), zero at first
  int first_part = 0;    // of this launch
};

template <class T>
struct GradientTile {
  T* x;       // (tile_edges, x_stride) of one chunk
  T* sh;      // (tile_edges, sh_stride)
  T* radial;  // (tile_edges, rank_stride)

  GLASS_HD static GradientTile take(const ConvPlan& plan, SharedPieces& shared) {
    return {shared.take<T>(plan.tile_edges * plan.x_stride), shared.take<T>(plan.tile_edges * plan.sh_stride),
            shared.take<T>(plan.tile_edges * plan.rank_stride)};
  }
};

template <class T>
__device__ __forceinline__ void clear_rows(T* rows, int n) {
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < n; i += kWarp) rows[i] = T(0);
}

// Adds values[0 .. n), summed over the channels of each edge, to elements 0 .. width - 1 of the edge's row.
template <int n, class T>
__device__ __forceinline__ void add_channel_sums(const Packing& lane, bool is_edge, T* values, int width, T* row) {
  const Share share = share_of_lane<n>(1, lane.n_lanes);
  share_sums<n>(values, 1, lane.n_lanes);
  if (!is_edge || !share.is_owner) return;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    if (i < share.count && share.first + i < width) row[share.first + i] += values[i];
  }
}

// Explicit weights: their gradients, from the tile to the edges.
template <int max_steps, class T>
__device__ __forceinline__ void store_weights(const ConvInput<T>& in, const ConvChunk& chunk, const ConvItem& item, int n_edges,
                                              const int64_t* edge, const WeightTile<max_steps, T>& tile, T* out) {
  const Packing lane(chunk, static_cast<int>(threadIdx.x) % kWarp);
  if (!lane.is_active) return;
  int step = 0;
  for (int e = lane.slot; e < n_edges; e += lane.n_slots, ++step) {
    T* const row = out + edge[e] * in.n_weights + chunk.first_channel + lane.channel;
    for (int path = 0; path < item.n_paths; ++path) row[item.weight[path]] = tile.at(step, path);
  }
}

// Low-rank weights: rows[edge][h] += sum_{paths, channels} (gradient of the weight) mix[h][column].
template <int max_steps, class T>
__device__ __forceinline__ void add_to_radial(const ConvInput<T>& in, const ConvPlan& plan, const ConvChunk& chunk,
                                              const ConvItem& item, int n_edges, const WeightTile<max_steps, T>& tile,
                                              const LowRank<T>& to) {
  const Packing lane(chunk, static_cast<int>(threadIdx.x) % kWarp);
  const int rank = static_cast<int>(in.rank), n_steps = lane.n_steps(n_edges);
#pragma unroll 1
  for (int h = 0; h < rank; h += 4) {
    T m[kMaxPathsOfSet][4] = {};
#pragma unroll
    for (int path = 0; path < kMaxPathsOfSet; ++path) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (path < item.n_paths && h + i < rank && lane.is_active) {
          m[path][i] = to.mix[(h + i) * in.n_weights + item.weight[path] + chunk.first_channel + lane.channel];
        }
      }
    }
#pragma unroll 1
    for (int step = 0; step < n_steps; ++step) {
      const int e = step * lane.n_slots + lane.slot;
      T sums[4] = {};
#pragma unroll
      for (int path = 0; path < kMaxPathsOfSet; ++path) {
        if (path < item.n_paths) {
          const T gradient = tile.at(step, path);
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i] += gradient * m[path][i];
        }
      }
      add_channel_sums<4>(lane, e < n_edges, sums, rank - h, to.rows + e * plan.rank_stride + h);
    }
  }
}

// mix[h][column] += sum_edges rows[edge][h] (gradient of the weight), for the columns of an item.
template <int max_steps, class T>
__device__ __forceinline__ void add_to_mix(const ConvInput<T>& in, const ConvPlan& plan, const ConvChunk& chunk,
                                           const ConvItem& item, int n_edges, const T* rows,
                                           const WeightTile<max_steps, T>& tile, T* mix) {
  const Packing lane(chunk, static_cast<int>(threadIdx.x) % kWarp);
  const Share share = share_of_lane<4>(lane.n_lanes, kWarp);
  const int rank = static_cast<int>(in.rank), channel = chunk.first_channel + lane.channel;
#pragma unroll 1
  for (int h = 0; h < rank; h += 4) {
    const auto is_mine = [&](int path, int i) {
      return path < item.n_paths && lane.is_active && share.is_owner && i < share.count && h + share.first + i < rank;
    };
    const auto element = [&](int path, int i) -> T& {
      return mix[(h + share.first + i) * in.n_weights + item.weight[path] + channel];
    };
    T before[kMaxPathsOfSet][4] = {};  // all loads under way before the first is needed
#pragma unroll
    for (int path = 0; path < kMaxPathsOfSet; ++path) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (is_mine(path, i)) before[path][i] = element(path, i);
      }
    }
#pragma unroll
    for (int path = 0; path < kMaxPathsOfSet; ++path) {
      if (path >= item.n_paths) break;
      T sums[4] = {};
      int step = 0;
#pragma unroll 1
      for (int e = lane.slot; e < n_edges; e += lane.n_slots, ++step) {
        T row[4];
        load_padded<4>(rows + e * plan.rank_stride + h, row);
        const T gradient = tile.at(step, path);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] += gradient * row[i];
      }
      share_sums<4>(sums, lane.n_lanes, kWarp);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (is_mine(path, i)) element(path, i) = before[path][i] + sums[i];
      }
    }
  }
}

// The chunk's gradients of the source features, one message for each slot of the row.
template <class T>
__device__ __forceinline__ void store_messages(const GradientTargets<T>& to, const ConvChunk& chunk, int64_t first, int n,
                                               const T* rows) {
  for_each_element(static_cast<int>(threadIdx.x) % kWarp, n, chunk.n_channels * chunk.d_in, [&](int e, int column) {
    T& message = to.messages[(first + e) * to.message_width + chunk.message + column];
    const T value = rows[e * chunk.stride + column];
    message = chunk.adds_message ? message + value : value;
  });
}

// Gradients of the tile's harmonics to the array of this part, where these were given.
template <class T>
__device__ __forceinline__ void store_harmonics(const ConvInput<T>& in, const ConvPlan& plan, int n, const EdgeTile<T>& edges,
                                                const T* rows, T* out) {
  for (int b = 0; b < plan.n_harmonic_blocks; ++b) {
    const HarmonicBlock& block = plan.harmonics[b];
    for_each_element(static_cast<int>(threadIdx.x) % kWarp, n, 2 * block.l + 1, [&](int e, int m) {
      out[edges.edge[e] * in.dim_sh + block.column + m] = rows[e * plan.sh_stride + block.tile + m];
    });
  }
}

// Gradients of the tile's vectors: those of the harmonics times dY/dr.
template <class T>
__device__ __forceinline__ void store_vectors(const ConvPlan& plan, int n, const EdgeTile<T>& edges, const T* rows, T* out) {
  for (int e = static_cast<int>(threadIdx.x) % kWarp; e < n; e += kWarp) {
    const T* const row = rows + e * plan.sh_stride;
    T gradient[3] = {};
    with_constant_l_max(plan.l_max, [&](auto l_max) {
      add_vector_gradient<l_max()>(edges.vectors + 4 * e, gradient,
                                   [&](int l, int m) { return row[computed_harmonic_tile(l) + m]; });
    });
#pragma unroll
    for (int k = 0; k < 3; ++k) out[3 * edges.edge[e] + k] = gradient[k];
  }
}

template <class T>
__device__ __forceinline__ void store_radial(const ConvInput<T>& in, const ConvPlan& plan, int n, const EdgeTile<T>& edges,
                                             const T* rows, T* out) {
  const int rank = static_cast<int>(in.rank);
  for_each_element(static_cast<int>(threadIdx.x) % kWarp, n, rank,
                   [&](int e, int h) { out[edges.edge[e] * rank + h] = rows[e * plan.rank_stride + h]; });
}

}  // namespace glassconv
