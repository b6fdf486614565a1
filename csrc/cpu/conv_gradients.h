// What the first and the second derivative of the convolution share: the coupling with a row's gradient, the tiles in which a
// segment's gradients gather, where they go, and the sums over tasks and over messages at the end.
#pragma once

#include "conv_schedule.h"

namespace glassconv {
namespace GLASSCONV_ISA {

// p[0], p[stride], p[2 stride], ...
template <class V, int stride, int... lane>
GLASS_INLINE V load_strided(const Scalar<V>* p, std::integer_sequence<int, lane...>) {
  return V{p[lane * stride]...};
}

// matrix[pair] of the coupling with the gradient of one row's output: channels in lanes, the first n, the others are 0.
template <class V, class Triple>
GLASS_INLINE void couple_with_gradient(const Scalar<V>* grad_out, int n, V* matrix) {
  constexpr int d_out = Triple::d_out, width = kWidth<V>;
  V g[d_out];
  if (n == width) {
    for (int k = 0; k < d_out; ++k) g[k] = load_strided<V, d_out>(grad_out + k, std::make_integer_sequence<int, width>{});
  } else {
    alignas(64) Scalar<V> lanes[d_out * width] = {};
    for (int c = 0; c < n; ++c) {
      for (int k = 0; k < d_out; ++k) lanes[k * width + c] = grad_out[c * d_out + k];
    }
    load_vectors<V, d_out>(lanes, g);
  }
  CoupledMatrix<Triple, SumOver::kOut>::template form<Scalar<V>>(g, matrix);
}

// The harmonics of one edge, sh[m][edge], the same in all lanes.
template <class V, int d>
GLASS_INLINE void load_harmonics(const Scalar<V>* sh, V* y) {
  for (int m = 0; m < d; ++m) y[m] = sh[m * kMaxEdges] - V{};
}
template <int n, class V>
GLASS_INLINE V dot(const V* a, const V* b) {
  V sum = a[0] * b[0];
  for (int i = 1; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Brings the gradients of the rows that begin within the next edges into the cache.
template <class T>
void prefetch_gradients(const Prepared<T>& prepared, const Cursor& cursor, const T* grad_out) {
  const ConvInput<T>& in = *prepared.in;
  for (int64_t row = cursor.row; row < in.n_nodes && in.row_ptr[row] < cursor.slot + prepared.max_edges; ++row) {
    prefetch_row(grad_out + row * in.dim_out, in.dim_out);
  }
}

// A low-rank factor (rank, n_weights), transposed: (n_weights, padded rank). Null where the weights are explicit.
template <class T>
class TransposedMix {
 public:
  T* data = nullptr;

  bool run(const Prepared<T>& prepared, const T* mix) {
    const ConvInput<T>& in = *prepared.in;
    if (in.rank == 0 || mix == nullptr) return true;
    const int64_t stride = padded<T>(in.rank);
    data = memory_.template allocate<T>(in.n_weights * stride);
    if (data == nullptr) return false;
    for (int64_t w = 0; w < in.n_weights; ++w) {
      for (int64_t h = 0; h < stride; ++h) data[w * stride + h] = h < in.rank ? mix[h * in.n_weights + w] : T(0);
    }
    return true;
  }

 private:
  Block memory_;
};

// Where the gradients go. `messages` and `mix_parts` live as long as this.
template <class T>
struct GradientTargets {
  ConvGradients<T> out;
  Block memory;
  T* messages = nullptr;   // (n_edges, layout.width) by slot
  T* mix_parts = nullptr;  // (n_tasks, rank, weight_stride)

  T* mix_part(const Prepared<T>& prepared, int64_t task) const {
    return mix_parts == nullptr ? nullptr : mix_parts + task * prepared.in->rank * prepared.weight_stride;
  }

  bool allocate(const Prepared<T>& prepared, const ConvGradients<T>& gradients, const TaskPlan& plan) {
    out = gradients;
    const ConvInput<T>& in = *prepared.in;
    const int64_t n_messages = out.x == nullptr ? 0 : in.n_edges * prepared.layout.width;
    const int64_t n_parts = out.mix == nullptr ? 0 : plan.n_tasks * in.rank * prepared.weight_stride;
    T* const memory_of_both = memory.template allocate<T>(n_messages + n_parts);
    if (memory_of_both == nullptr) return false;
    if (out.x != nullptr) messages = memory_of_both;
    if (out.mix != nullptr) {
      mix_parts = memory_of_both + n_messages;
      memset(mix_parts, 0, static_cast<size_t>(n_parts) * sizeof(T));
    }
    return true;
  }

  void finish(const Prepared<T>& prepared, const TaskPlan& plan, const Executor& executor) const {
    if (out.mix != nullptr) sum_mix_parts(prepared, plan);
    if (out.x != nullptr) {
      for_each_range(prepared.in->n_nodes, executor,
                     [&](int64_t first, int64_t stop) { gather_messages(prepared, first, stop); });
    }
  }

 private:
  void sum_mix_parts(const Prepared<T>& prepared, const TaskPlan& plan) const {
    constexpr int64_t kColumns = 256;
    const int64_t n = prepared.in->n_weights, stride = prepared.weight_stride, part = prepared.in->rank * stride;
    for (int64_t h = 0; h < prepared.in->rank; ++h) {
      for (int64_t first = 0; first < n; first += kColumns) {
        const int64_t columns = n - first < kColumns ? n - first : kColumns;
        double sum[kColumns] = {};  // one running sum over all edges would lose digits in float
        for (int64_t task = 0; task < plan.n_tasks; ++task) {
          const T* const from = mix_parts + task * part + h * stride + first;
          for (int64_t i = 0; i < columns; ++i) sum[i] += static_cast<double>(from[i]);
        }
        for (int64_t i = 0; i < columns; ++i) out.mix[h * n + first + i] = static_cast<T>(sum[i]);
      }
    }
  }

  // Every node sums the messages of the edges that leave it, in the order of the transpose index.
  void gather_messages(const Prepared<T>& prepared, int64_t first, int64_t stop) const {
    constexpr int kVectors = 8;  // of a message, summed in registers
    constexpr int64_t kAhead = 8;
    const ConvInput<T>& in = *prepared.in;
    const int64_t width = prepared.layout.width, n_slots = in.transpose_ptr[in.n_nodes];
    const int64_t* const slots = in.transpose_slots;
    alignas(64) T sums[kVectors * kLanes<T>];
    for (int64_t node = first; node < stop; ++node) {
      T* const grad = out.x + node * in.dim_in;
      if (prepared.layout.n_read < in.dim_in) memset(grad, 0, static_cast<size_t>(in.dim_in) * sizeof(T));
      for (int64_t col = 0; col < width; col += kVectors * kLanes<T>) {
        const int n = static_cast<int>((width - col < kVectors * kLanes<T> ? width - col : kVectors * kLanes<T>) / kLanes<T>);
        Lanes<T> sum[kVectors] = {};
        for (int64_t k = in.transpose_ptr[node]; k < in.transpose_ptr[node + 1]; ++k) {
          if (k + kAhead < n_slots) prefetch_row(messages + slots[k + kAhead] * width + col, n * kLanes<T>);
          const T* const message = messages + slots[k] * width + col;
          if (n == kVectors) {
            for (int v = 0; v < kVectors; ++v) sum[v] += load<T>(message + v * kLanes<T>);
          } else {
            for (int v = 0; v < kVectors; ++v) {
              if (v < n) sum[v] += load<T>(message + v * kLanes<T>);
            }
          }
        }
        for (int v = 0; v < kVectors; ++v) store<T>(sums + v * kLanes<T>, sum[v]);
        unpack_columns(prepared.layout, sums, col, col + n * kLanes<T>, grad);
      }
    }
  }
};

// The gradients of the current segment. Null where not wanted.
template <class T>
struct GradientTiles {
  const Prepared<T>* prepared;
  const GradientTargets<T>* targets;
  T** weight;                         // of each edge: where the gradient of its weights goes
  T* message;                         // [kMaxEdges][layout.width]
  T* weight_tile;                     // [kMaxEdges][weight_stride], for low-rank weights
  T* sh;                              // [edge][dim_sh][sh_width]: sums over channels, not yet over the lanes
  T* curvature;                       // the same, for the derivative of the harmonics (second derivatives only)
  T* lane_sums;                       // [edge][sh_stride]
  Lanes<T>*sh_tile, *curvature_tile;  // [dim_sh]
  Lanes<T>* vectors;                  // [3]
  int64_t* lane_index;
  int sh_width;
  int64_t sh_stride;

  static GradientTiles layout(const Prepared<T>& prepared, const GradientTargets<T>& targets, bool second, Arena& arena) {
    GradientTiles tiles;
    tiles.prepared = &prepared;
    tiles.targets = &targets;
    const ConvGradients<T>& out = targets.out;
    const ConvInput<T>& in = *prepared.in;
    const bool low_rank = in.rank > 0 && (out.weight != nullptr || out.mix != nullptr);
    const bool wanted = low_rank || out.weight != nullptr;
    tiles.weight = wanted ? arena.take<T*>(kMaxEdges) : nullptr;
    tiles.weight_tile = low_rank ? arena.take<T>(prepared.max_edges * prepared.weight_stride) : nullptr;
    tiles.message = out.x != nullptr ? arena.take<T>(prepared.max_edges * prepared.layout.width) : nullptr;
    const bool angular = out.angular != nullptr;
    tiles.sh_width = prepared.layout.is_half ? kWidth<HalfLanes<T>> : kLanes<T>;
    tiles.sh_stride = padded<T>(in.dim_sh);
    tiles.sh = angular ? arena.take<T>(kMaxEdges * in.dim_sh * tiles.sh_width) : nullptr;
    tiles.curvature = angular && second ? arena.take<T>(kMaxEdges * in.dim_sh * tiles.sh_width) : nullptr;
    tiles.lane_sums = arena.take<T>(kMaxEdges * tiles.sh_stride);
    tiles.sh_tile = arena.take<Lanes<T>>(in.dim_sh * kMaxBlocks<T>);
    tiles.curvature_tile = arena.take<Lanes<T>>(in.dim_sh * kMaxBlocks<T>);
    tiles.vectors = arena.take<Lanes<T>>(3 * kMaxBlocks<T>);
    tiles.lane_index = arena.take<int64_t>(kMaxEdges);
    return tiles;
  }

  void begin(const Segment& segment) const {
    const ConvInput<T>& in = *prepared->in;
    const size_t bytes = static_cast<size_t>(segment.n_edges * in.dim_sh * sh_width) * sizeof(T);
    if (sh != nullptr) memset(sh, 0, bytes);
    if (curvature != nullptr) memset(curvature, 0, bytes);
    if (weight == nullptr) return;
    for (int e = 0; e < segment.n_edges; ++e) {
      weight[e] = weight_tile != nullptr ? weight_tile + e * prepared->weight_stride
                                         : targets->out.weight + segment.edge[e] * in.n_weights;
    }
  }
  void store_messages(const Segment& segment) const {
    if (message == nullptr) return;
    const int64_t width = prepared->layout.width;
    T* const to = targets->messages + segment.first_slot * width;
    for (int64_t i = 0; i < segment.n_edges * width; i += kLanes<T>) stream<T>(to + i, load<T>(message + i));
  }

  // `along`: direction of the second derivative; null for first derivatives.
  void store_angular(const EdgeTiles<T>& edges, const Lanes<T>* along) const {
    const ConvInput<T>& in = *prepared->in;
    const Segment& s = *edges.segment;
    const Rows<T> out{targets->out.angular, in.given_sh ? in.dim_sh : 3, in.n_edges};
    sum_lanes(s, sh);
    if (in.given_sh) {
      for (int e = 0; e < s.n_edges; ++e) {
        memcpy(out.data + s.edge[e] * out.width, lane_sums + e * sh_stride, sizeof(T) * static_cast<size_t>(out.width));
      }
      return;
    }
    for (int lane = 0; lane < n_blocks<T>(s) * kLanes<T>; ++lane) lane_index[lane] = lane < s.n_edges ? lane : -1;
    gather<T>({lane_sums, sh_stride, kMaxEdges}, lane_index, n_blocks<T>(s), in.dim_sh, sh_tile);
    if (along != nullptr) {
      sum_lanes(s, curvature);
      gather<T>({lane_sums, sh_stride, kMaxEdges}, lane_index, n_blocks<T>(s), in.dim_sh, curvature_tile);
    }
    harmonics_gradient_tile<T>(edges.vectors, sh_tile, along, curvature_tile, n_blocks<T>(s), edges.l_max, vectors);
    scatter<T>(vectors, s.edge, n_blocks<T>(s), 3, out);
  }

  // grad_radial = grad_w mix^T (+ first_w v_mix^T), grad_mix += radial^T grad_w (+ v_radial^T first_w)
  void add_to_mix(const EdgeTiles<T>& edges, const T* const* radial, const T* const* grad_w, T* part) const {
    const ConvInput<T>& in = *prepared->in;
    if (part == nullptr) return;
    add_outer<T>(radial, grad_w, edges.segment->n_edges, in.rank, in.n_weights, part, prepared->weight_stride);
  }
  void store_radial(const EdgeTiles<T>& edges, const T* mix_transposed, const T* const* grad_w, bool accumulate) const {
    const ConvInput<T>& in = *prepared->in;
    if (targets->out.weight == nullptr) return;
    T* to[kMaxEdges];
    for (int e = 0; e < edges.segment->n_edges; ++e) to[e] = targets->out.weight + edges.segment->edge[e] * in.rank;
    multiply_rows<T>(grad_w, edges.segment->n_edges, in.n_weights, {mix_transposed, padded<T>(in.rank)}, to, in.rank,
                     accumulate);
  }

 private:
  void sum_lanes(const Segment& segment, const T* from) const {
    if (sh_width == kLanes<T>) {
      sum_lanes_of<Lanes<T>>(segment, from);
    } else {
      sum_lanes_of<HalfLanes<T>>(segment, from);
    }
  }
  template <class V>
  void sum_lanes_of(const Segment& segment, const T* from) const {
    constexpr int width = kWidth<V>;
    const int n = static_cast<int>(prepared->in->dim_sh);
    for (int e = 0; e < segment.n_edges; ++e) {
      for (int m = 0; m < n; m += width) {
        V v[width];
        for (int i = 0; i < width; ++i) v[i] = m + i < n ? load_vector<V>(from + (e * n + m + i) * width) : V{};
        store_vector<V>(lane_sums + e * sh_stride + m, reduced<V>(v));
      }
    }
  }
};

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
