// What the first and the second derivative of the convolution share: the tiles in which a segment's gradients gather, where
// they go, and the sums over tasks and over messages at the end.
#pragma once

#include <sys/mman.h>

#include "conv_schedule.h"

namespace glassconv {
namespace GLASSCONV_ISA {

// The coupling with a row's gradient, channels in lanes: q[pair * kQStride + channel].
template <class T>
inline constexpr int kChannelVectors = (kChannelChunk + kLanes<T> - 1) / kLanes<T>;
template <class T>
inline constexpr int kQStride = kChannelVectors<T> * kLanes<T>;

template <class T, class Triple>
GLASS_INLINE void couple_with_gradient(const T* grad_out, int n_channels, Lanes<T>* q) {
  constexpr int d_out = Triple::d_out;
  alignas(64) T by_channel[d_out * kQStride<T>];
  for (int c = 0; c < n_channels; ++c) {
    for (int k = 0; k < d_out; ++k) by_channel[k * kQStride<T> + c] = grad_out[c * d_out + k];
  }
  for (int v = 0; v * kLanes<T> < n_channels; ++v) {
    Lanes<T> g[d_out];
    for (int k = 0; k < d_out; ++k) g[k] = load<T>(by_channel + k * kQStride<T> + v * kLanes<T>);
    CoupledMatrix<Triple, SumOver::kOut>::template form<T>(g, q + v, kChannelVectors<T>);
  }
}

template <int n, class V>
GLASS_INLINE V dot(const V* a, const V* b) {
  V sum = a[0] * b[0];
  for (int i = 1; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
inline constexpr int kFeatureTile = (kChannelChunk * kMaxDim + kLanes<T>)*kMaxBlocks;
template <class T>
inline constexpr int kWeightTile = (kChannelChunk + kLanes<T>)*kMaxBlocks;

template <class T>
int64_t mix_bytes(const ConvInput<T>& in) {
  return in.rank * in.n_weights * static_cast<int64_t>(sizeof(T));
}

template <class T>
Cursor first_row(const ConvInput<T>& in, const TaskPlan& plan, int64_t task) {
  const int64_t row = task * plan.rows_per_task, stop = row + plan.rows_per_task;
  return {row, stop < in.n_nodes ? stop : in.n_nodes, in.row_ptr[row]};
}

// Memory for an array that is written once and read once; free() it. Asked for in huge pages: for a hundred megabytes the
// page faults of small ones take as long as a third of the backward pass.
inline void* allocate_large(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  if (bytes < 4 * kHugePage) return malloc(bytes);
  void* const memory = aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage);
#ifdef MADV_HUGEPAGE
  if (memory != nullptr) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

// Where the gradients go. `messages` and `mix_parts` live from allocate() to release().
template <class T>
struct GradientTargets {
  ConvGradients<T> out;
  T* messages = nullptr;   // (n_edges, dim_in) by slot
  T* mix_parts = nullptr;  // (n_tasks, rank, n_weights)

  T* mix_part(const ConvInput<T>& in, int64_t task) const {
    return mix_parts == nullptr ? nullptr : mix_parts + task * in.rank * in.n_weights;
  }

  bool allocate(const ConvInput<T>& in, const ConvGradients<T>& gradients, const TaskPlan& plan) {
    out = gradients;
    if (out.x != nullptr && in.n_edges > 0) {
      messages = static_cast<T*>(allocate_large(static_cast<size_t>(in.n_edges * in.dim_in) * sizeof(T) + 64));
      if (messages == nullptr) return false;
      clear_unread_columns(in);
    }
    if (out.mix != nullptr) {
      mix_parts = static_cast<T*>(calloc(static_cast<size_t>(plan.n_tasks) + 1, static_cast<size_t>(mix_bytes(in)) + 64));
      if (mix_parts == nullptr) return release(), false;
    }
    return true;
  }
  void release() {
    free(messages);
    free(mix_parts);
  }

  void finish(const ConvInput<T>& in, const TaskPlan& plan, const Executor& executor) const {
    if (out.mix != nullptr) sum_mix_parts(in, plan);
    if (out.x != nullptr) {
      struct Context {
        const GradientTargets* self;
        const ConvInput<T>* in;
        int64_t rows;
      } context{this, &in, plan_tasks(in.n_nodes, 0).rows_per_task};
      executor(
          plan_tasks(in.n_nodes, 0).n_tasks,
          [](void* raw, int64_t task) {
            const Context& c = *static_cast<const Context*>(raw);
            const int64_t first = task * c.rows, stop = first + c.rows;
            c.self->gather_messages(*c.in, first, stop < c.in->n_nodes ? stop : c.in->n_nodes);
          },
          &context);
    }
  }

 private:
  // Input blocks that no path reads get no message: their gradient is zero.
  void clear_unread_columns(const ConvInput<T>& in) {
    int64_t read = 0;
    for_each_chunk(in, [&](const ChannelChunk& chunk) { read += chunk.n * (2 * in.paths[chunk.path].l_in + 1); });
    if (read < in.dim_in) memset(messages, 0, static_cast<size_t>(in.n_edges * in.dim_in) * sizeof(T));
  }

  void sum_mix_parts(const ConvInput<T>& in, const TaskPlan& plan) const {
    const int64_t size = in.rank * in.n_weights;
    for (int64_t i = 0; i < size; ++i) {
      double sum = 0;  // one running sum over all edges would lose digits in float
      for (int64_t task = 0; task < plan.n_tasks; ++task) sum += mix_parts[task * size + i];
      out.mix[i] = static_cast<T>(sum);
    }
  }

  void gather_messages(const ConvInput<T>& in, int64_t first, int64_t stop) const {
    for (int64_t node = first; node < stop; ++node) {
      T* const grad = out.x + node * in.dim_in;
      memset(grad, 0, static_cast<size_t>(in.dim_in) * sizeof(T));
      for (int64_t k = in.transpose_ptr[node]; k < in.transpose_ptr[node + 1]; ++k) {
        const T* const message = messages + in.transpose_slots[k] * in.dim_in;
        for (int64_t col = 0; col < in.dim_in; ++col) grad[col] += message[col];
      }
    }
  }
};

// The gradients of the current segment, in lanes. Null where not wanted.
template <class T>
struct GradientTiles {
  const ConvInput<T>* in;
  GradientTargets<T> targets;
  Lanes<T>* x;          // [channels * d_in] of the current chunk
  Lanes<T>* weight;     // [channels] of the current path and chunk
  Lanes<T>* sh;         // [dim_sh]
  Lanes<T>* curvature;  // [dim_sh] gradient with respect to the derivative of the harmonics (second derivatives only)
  Lanes<T>* vectors;    // [3]
  Lanes<T>* radial;     // [rank]

  static GradientTiles layout(const ConvInput<T>& in, const GradientTargets<T>& targets, Arena& arena) {
    GradientTiles tiles;
    tiles.in = &in;
    tiles.targets = targets;
    const ConvGradients<T>& out = targets.out;
    tiles.x = out.x == nullptr ? nullptr : arena.take<Lanes<T>>(kFeatureTile<T>);
    tiles.weight = arena.take<Lanes<T>>(kWeightTile<T>);
    tiles.sh = out.angular == nullptr ? nullptr : arena.take<Lanes<T>>(in.dim_sh * kMaxBlocks);
    tiles.curvature = out.angular == nullptr ? nullptr : arena.take<Lanes<T>>(in.dim_sh * kMaxBlocks);
    tiles.vectors = arena.take<Lanes<T>>(3 * kMaxBlocks);
    tiles.radial = in.rank == 0 || out.weight == nullptr ? nullptr : arena.take<Lanes<T>>(in.rank * kMaxBlocks);
    return tiles;
  }

  void clear(int n_blocks) {
    if (sh != nullptr) zero(sh, in->dim_sh, n_blocks);
    if (curvature != nullptr) zero(curvature, in->dim_sh, n_blocks);
    if (radial != nullptr) zero(radial, in->rank, n_blocks);
  }
  void clear_x(int64_t n_cols) {
    if (x != nullptr) zero(x, n_cols, kMaxBlocks);
  }
  static void zero(Lanes<T>* tile, int64_t n_cols, int n_blocks) {
    for (int64_t col = 0; col < n_cols; ++col) {
      for (int b = 0; b < n_blocks; ++b) tile[col * kMaxBlocks + b] = Lanes<T>{};
    }
  }

  // grad radial[h] += sum_w matrix[h][w] grad_w[w], for the weights first .. first + n.
  void add_to_radial(const EdgeTiles<T>& edges, const T* matrix, int64_t first, int n, const Lanes<T>* grad_w) const {
    if (radial == nullptr) return;
    multiply<T>({matrix + first, in->n_weights, 1}, in->rank, n, edges.segment->n_blocks, grad_w, radial, true);
  }
  // grad mix[h][w] += sum_edges left[h] grad_w[w]
  void add_to_mix(const EdgeTiles<T>& edges, const Lanes<T>* left, int64_t first, int n, const Lanes<T>* grad_w,
                  T* part) const {
    if (part == nullptr) return;
    add_outer<T>(left, in->rank, grad_w, n, edges.segment->n_blocks, part + first, in->n_weights);
  }

  void store_messages(const EdgeTiles<T>& edges, int64_t first_col, int64_t n_cols) const {
    if (x == nullptr) return;
    scatter<T>(x, edges.segment->slot, edges.segment->n_blocks, first_col, n_cols, {targets.messages, in->dim_in, in->n_edges});
  }
  void store_radial(const EdgeTiles<T>& edges) const {
    scatter<T>(radial, edges.segment->edge, edges.segment->n_blocks, 0, in->rank, {targets.out.weight, in->rank, in->n_edges});
  }
  // `along`: direction of the second derivative, with `curvature`; null for first derivatives.
  void store_angular(const EdgeTiles<T>& edges, const Lanes<T>* along, const Lanes<T>* curvature_grad) const {
    const Segment<T>& s = *edges.segment;
    if (in->given_sh) {
      scatter<T>(sh, s.edge, s.n_blocks, 0, in->dim_sh, {targets.out.angular, in->dim_sh, in->n_edges});
    } else {
      harmonics_gradient_tile<T>(edges.vectors, sh, along, curvature_grad, s.n_blocks, edges.l_max, vectors);
      scatter<T>(vectors, s.edge, s.n_blocks, 0, 3, {targets.out.angular, 3, in->n_edges});
    }
  }
};

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
