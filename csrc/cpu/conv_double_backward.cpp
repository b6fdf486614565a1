// Second derivatives of the convolution, schedule.
//
// With S(x, Y, w, g) = <g, conv(x, Y, w)>, which is linear in each argument, conv_backward returns dS/dx, dS/dY, dS/dw. For
// cotangents (vx, vY, vw) of these, the scalar to differentiate is
//   T = S(vx, Y, w, g) + S(x, vY, w, g) + S(x, Y, vw, g),
// and one pass over the rows gives, with Q = C g (per row and channel), t = x Q, tv = vx Q, A = C Y, B = C vY:
//   dT/dg = sum_edges (w vx + vw x) A + w x B          dT/dw = <tv, Y> + <t, vY>
//   dT/dx = w (Q vY) + vw (Q Y)                        dT/dY = w tv + vw t
// For vectors r, vY = (dY/dr) vr, and Y's curvature adds sum_m (w t)_m d/dr (dY_m/dr . vr). For low-rank weights
// w = radial mix, vw = vradial mix + radial vmix, and S_w = <t, Y> enters the gradients of radial and mix a second time.
// Compiled once per instruction set.
#include "conv_gradients.h"
#include "isa.h"

namespace glassconv {
namespace GLASSCONV_ISA {

template <class T>
struct DoubleBackwardWork {
  const Segment* segment;
  const Lanes<T>*sh, *sh_v;        // Y, vY of this path, [d_sh][block]
  T* matrix;                       // room for two times [n_pairs][kMaxEdges]
  const T *const *x, *const *x_v;  // x, vx of each edge: packed features, with this path's input block at x_offset
  int64_t x_offset;
  const T *const *weight, *const *weight_v;  // w, vw of each edge, with this path's at weight_offset
  int64_t weight_offset;
  int64_t n_channels;
  const T* grad_out;
  T* grad_grad_out;  // null: not wanted
  int64_t out_width;
  T* grad_x;  // messages of this path's input block; null: not wanted
  int64_t grad_x_width;
  bool is_first;                                // of the paths of its input block
  T *const *grad_weight, *const *first_weight;  // of each edge, dT/dw and dS/dw; null: not wanted
  T *grad_sh, *curvature;                       // [edge][dim_sh][lane] from this path's harmonics on; null: not wanted
  int64_t grad_sh_width, dim_sh;
};

template <class V, class Triple>
struct DoubleBackwardKernel {
  using T = Scalar<V>;
  static constexpr int d_in = Triple::d_in, d_sh = Triple::d_sh, d_out = Triple::d_out, width = kWidth<V>;

  static void run(const DoubleBackwardWork<T>& work) {
    if (work.grad_grad_out != nullptr) run_forward_part(work);
    for (int64_t first = 0; first < work.n_channels; first += width) run_gradient_part(work, first);
  }

  static __attribute__((noinline)) void run_forward_part(const DoubleBackwardWork<T>& work) {
    using Matrix = CoupledMatrix<Triple, SumOver::kSh>;
    const Segment& segment = *work.segment;
    T* const matrix_v = work.matrix + kMaxPairs * kMaxEdges;
    couple_with_harmonics<T, Triple>(work.sh, n_blocks<T>(segment), work.matrix);
    couple_with_harmonics<T, Triple>(work.sh_v, n_blocks<T>(segment), matrix_v);
    for (int64_t first = 0; first < work.n_channels; first += width) {
      const int n = static_cast<int>(work.n_channels - first < width ? work.n_channels - first : width);
      const int64_t x_at = work.x_offset + first * d_in, weight_at = work.weight_offset + first;
      for (int row = 0; row < segment.n_rows; ++row) {
        V sum[d_out] = {};
        for (int e = segment.first_edge[row]; e < segment.first_edge[row + 1]; ++e) {
          const V w = load_vector<V>(work.weight[e] + weight_at), w_v = load_vector<V>(work.weight_v[e] + weight_at);
          V x[d_in], x_v[d_in], message[d_out] = {};
          load_vectors<V, d_in>(work.x[e] + x_at, x);
          load_vectors<V, d_in>(work.x_v[e] + x_at, x_v);
          for (int i = 0; i < d_in; ++i) x_v[i] = w * x_v[i] + w_v * x[i];
          Matrix::from_rows(x_v, work.matrix + e, message, kMaxEdges);
          for (int i = 0; i < d_in; ++i) x[i] *= w;
          Matrix::from_rows(x, matrix_v + e, message, kMaxEdges);
          for (int k = 0; k < d_out; ++k) sum[k] += message[k];
        }
        add_transposed<V, d_out>(sum, n, work.grad_grad_out + segment.row[row] * work.out_width + first * d_out);
      }
    }
  }

  static __attribute__((noinline)) void run_gradient_part(const DoubleBackwardWork<T>& work, int64_t first) {
    using Matrix = CoupledMatrix<Triple, SumOver::kOut>;
    const Segment& segment = *work.segment;
    const int n = static_cast<int>(work.n_channels - first < width ? work.n_channels - first : width);
    const int64_t x_at = work.x_offset + first * d_in, weight_at = work.weight_offset + first;
    const KeepFirst<V> keep(n);  // beyond are the weights of other paths
    const T *const sh = reinterpret_cast<const T*>(work.sh), *const sh_v = reinterpret_cast<const T*>(work.sh_v);
    V q[Matrix::n_pairs];
    for (int row = 0; row < segment.n_rows; ++row) {
      couple_with_gradient<V, Triple>(work.grad_out + segment.row[row] * work.out_width + first * d_out, n, q);
      for (int e = segment.first_edge[row]; e < segment.first_edge[row + 1]; ++e) {
        const V w = keep(load_vector<V>(work.weight[e] + weight_at)), w_v = keep(load_vector<V>(work.weight_v[e] + weight_at));
        V y[d_sh], y_v[d_sh], t[d_sh] = {}, t_v[d_sh] = {};
        {
          V x[d_in];
          load_vectors<V, d_in>(work.x[e] + x_at, x);
          Matrix::from_rows(x, q, t);
          load_vectors<V, d_in>(work.x_v[e] + x_at, x);
          Matrix::from_rows(x, q, t_v);
        }
        load_harmonics<V, d_sh>(sh + e, y);
        load_harmonics<V, d_sh>(sh_v + e, y_v);
        if (work.grad_weight != nullptr) {
          store_weight(work.grad_weight[e] + weight_at, dot<d_sh>(t_v, y) + dot<d_sh>(t, y_v), n);
        }
        if (work.first_weight != nullptr) store_weight(work.first_weight[e] + weight_at, dot<d_sh>(t, y), n);
        if (work.grad_sh != nullptr) {
          const int64_t at = e * work.dim_sh * work.grad_sh_width;
          for (int m = 0; m < d_sh; ++m) {
            add_vector(work.grad_sh + at + m * work.grad_sh_width, w * t_v[m] + w_v * t[m]);
            add_vector(work.curvature + at + m * work.grad_sh_width, w * t[m]);
          }
        }
        if (work.grad_x != nullptr) {
          V h[d_in] = {};
          for (int m = 0; m < d_sh; ++m) y[m] = w * y_v[m] + w_v * y[m];
          Matrix::from_cols(y, q, h);
          T* const message = work.grad_x + e * work.grad_x_width + first * d_in;
          for (int i = 0; i < d_in; ++i) {
            if (work.is_first) {
              store_vector<V>(message + i * width, h[i]);
            } else {
              add_vector(message + i * width, h[i]);
            }
          }
        }
      }
    }
  }

  static GLASS_INLINE void add_vector(T* p, const V& v) { store_vector<V>(p, load_vector<V>(p) + v); }
  static GLASS_INLINE void store_weight(T* p, const V& v, int n) {
    if (n == width) {
      store_vector<V>(p, v);
    } else {
      store_first<V>(p, v, n);
    }
  }
};

template <class T>
struct DoubleBackwardShared {
  const Prepared<T>* prepared;
  ConvCotangents<T> v;
  const T *x_v, *mix_v;  // packed and padded; null: zero
  const T *mix_transposed, *mix_v_transposed;
  const T* grad_out;
  T* grad_grad_out;
  const GradientTargets<T>* targets;
  TaskPlan plan;
};

// The cotangents of the current segment; zero where no cotangent was given.
template <class T>
struct CotangentTiles {
  Lanes<T>* vectors;  // [3]
  Lanes<T>* sh;       // [dim_sh]
  const T** radial;   // of each edge
  const T** x;        // of each edge
  T* zeros;           // in place of packed features
  WeightRows<T> weight;

  static CotangentTiles layout(const Prepared<T>& prepared, Arena& arena) {
    CotangentTiles tiles{arena.take<Lanes<T>>(3 * kMaxBlocks<T>), arena.take<Lanes<T>>(prepared.in->dim_sh * kMaxBlocks<T>),
                         arena.take<const T*>(kMaxEdges),         arena.take<const T*>(kMaxEdges),
                         arena.take<T>(prepared.layout.width),    WeightRows<T>::layout(prepared, arena)};
    if (tiles.zeros != nullptr) memset(tiles.zeros, 0, sizeof(T) * static_cast<size_t>(prepared.layout.width));
    return tiles;
  }

  void load(const DoubleBackwardShared<T>& shared, const EdgeTiles<T>& edges) const {
    const Prepared<T>& prepared = *shared.prepared;
    const ConvInput<T>& in = *prepared.in;
    const ConvCotangents<T>& v = shared.v;
    const Segment& s = *edges.segment;
    if (v.angular == nullptr) {
      memset(sh, 0, sizeof(Lanes<T>) * static_cast<size_t>(in.dim_sh * kMaxBlocks<T>));
      memset(vectors, 0, sizeof(Lanes<T>) * 3 * kMaxBlocks<T>);
    } else if (in.given_sh) {
      gather<T>(edges.rows(v.angular, in.dim_sh), s.edge, n_blocks<T>(s), in.dim_sh, sh);
    } else {
      gather<T>(edges.rows(v.angular, 3), s.edge, n_blocks<T>(s), 3, vectors);
      harmonics_derivative_tile<T>(edges.vectors, vectors, n_blocks<T>(s), edges.l_max, sh);
    }
    for (int e = 0; e < s.n_edges; ++e) x[e] = shared.x_v == nullptr ? zeros : shared.x_v + s.source[e] * prepared.layout.width;
    if (in.rank == 0 && v.weight != nullptr) {
      weight.point_to(prepared, v.weight, s);
      return;
    }
    const bool from_radial = in.rank > 0 && v.weight != nullptr, from_mix = shared.mix_v != nullptr;
    if (from_radial) {
      for (int e = 0; e < s.n_edges; ++e) radial[e] = v.weight + s.edge[e] * in.rank;
      weight.multiply(prepared, radial, s.n_edges, prepared.mix, false);
    }
    if (from_mix) weight.multiply(prepared, edges.radial, s.n_edges, shared.mix_v, from_radial);
    if (!from_radial && !from_mix) weight.clear(prepared, s.n_edges);
  }
};

template <class T>
struct DoubleBackwardWorker {
  using Kernel = void (*)(const DoubleBackwardWork<T>&);
  const DoubleBackwardShared<T>* shared;
  EdgeTiles<T> edges;
  CotangentTiles<T> v;
  GradientTiles<T> grads;
  T* matrix;
  T* first_weight_tile;  // [max_edges][weight_stride], for low-rank weights whose cotangents are not zero
  T** first_weight;      // of each edge
  Kernel* kernels;       // of each path

  static DoubleBackwardWorker layout(const DoubleBackwardShared<T>& shared, Arena& arena) {
    const Prepared<T>& prepared = *shared.prepared;
    const ConvInput<T>& in = *prepared.in;
    DoubleBackwardWorker worker{&shared,
                                EdgeTiles<T>::layout(prepared, arena),
                                CotangentTiles<T>::layout(prepared, arena),
                                GradientTiles<T>::layout(prepared, *shared.targets, true, arena),
                                arena.take<T>(2 * kMaxPairs * kMaxEdges),
                                nullptr,
                                nullptr,
                                arena.take<Kernel>(in.n_paths)};
    if (in.rank > 0 && worker.wants_first_weight()) {
      worker.first_weight_tile = arena.take<T>(prepared.max_edges * prepared.weight_stride);
      worker.first_weight = arena.take<T*>(kMaxEdges);
    }
    if (worker.kernels == nullptr) return worker;
    for (int e = 0; worker.first_weight != nullptr && e < prepared.max_edges; ++e) {
      worker.first_weight[e] = worker.first_weight_tile + e * prepared.weight_stride;
    }
    for_each_path(prepared, [&](const InputBlock& block, int64_t p) {
      worker.kernels[p] = select_kernel<DoubleBackwardKernel, T, DoubleBackwardWork<T>>(in.paths[p], block.width);
    });
    return worker;
  }

  bool wants_first_weight() const {
    const ConvGradients<T>& out = shared->targets->out;
    return (out.weight != nullptr && shared->mix_v != nullptr) || (out.mix != nullptr && shared->v.weight != nullptr);
  }

  void task(int64_t index) {
    const ConvInput<T>& in = *shared->prepared->in;
    Cursor cursor = first_row(in, shared->plan, index);
    T* const mix_part = shared->targets->mix_part(*shared->prepared, index);
    if (shared->grad_grad_out != nullptr) {
      memset(shared->grad_grad_out + cursor.row * in.dim_out, 0,
             sizeof(T) * static_cast<size_t>((cursor.row_end - cursor.row) * in.dim_out));
    }
    while (edges.next(cursor)) {
      prefetch_gradients(*shared->prepared, cursor, shared->grad_out);
      v.load(*shared, edges);
      grads.begin(*edges.segment);
      for_each_path(*shared->prepared, [&](const InputBlock& block, int64_t p) {
        edges.prefetch(cursor, p);
        if (shared->v.weight != nullptr && in.rank == 0) edges.prefetch_rows(cursor, p, shared->v.weight, in.n_weights);
        run_path(block, p);
      });
      grads.store_messages(*edges.segment);
      if (grads.sh != nullptr) grads.store_angular(edges, v.vectors);
      if (in.rank > 0) store_low_rank(mix_part);
    }
  }

  void run_path(const InputBlock& block, int64_t p) {
    const ConvInput<T>& in = *shared->prepared->in;
    const ConvPath& path = in.paths[p];
    const int64_t sh_at = path.sh_offset * kMaxBlocks<T>, grad_sh_at = path.sh_offset * grads.sh_width;
    kernels[p]({edges.segment,
                edges.sh + sh_at,
                v.sh + sh_at,
                matrix,
                edges.x,
                v.x,
                block.packed_offset,
                edges.weight.row,
                v.weight.row,
                path.weight_offset,
                path.n_channels,
                shared->grad_out + path.out_offset,
                shared->grad_grad_out == nullptr ? nullptr : shared->grad_grad_out + path.out_offset,
                in.dim_out,
                grads.message == nullptr ? nullptr : grads.message + block.packed_offset,
                shared->prepared->layout.width,
                p == block.path,
                grads.weight,
                first_weight,
                grads.sh == nullptr ? nullptr : grads.sh + grad_sh_at,
                grads.sh == nullptr ? nullptr : grads.curvature + grad_sh_at,
                grads.sh_width,
                in.dim_sh});
  }

  void store_low_rank(T* mix_part) {
    grads.store_radial(edges, shared->mix_transposed, grads.weight, false);
    grads.add_to_mix(edges, edges.radial, grads.weight, mix_part);
    if (shared->mix_v != nullptr) grads.store_radial(edges, shared->mix_v_transposed, first_weight, true);
    if (shared->v.weight != nullptr) grads.add_to_mix(edges, v.radial, first_weight, mix_part);
  }
};

template <class T>
bool conv_double_backward(const ConvInput<T>& input, const ConvCotangents<T>& cotangents, const T* grad_out, T* grad_grad_out,
                          const ConvGradients<T>& gradients, const Executor& executor) {
  Prepared<T> prepared(input);
  const TaskPlan plan = plan_tasks(input.n_nodes, gradients.mix == nullptr ? 0 : prepared.mix_bytes());
  GradientTargets<T> targets;
  TransposedMix<T> transposed, transposed_v;
  if (!prepared.run(executor) || !targets.allocate(prepared, gradients, plan) || !transposed.run(prepared, input.mix) ||
      !transposed_v.run(prepared, cotangents.mix)) {
    return false;
  }
  Block memory;
  const int64_t n_x = cotangents.x == nullptr ? 0 : input.n_nodes * prepared.layout.width;
  const bool has_mix = input.rank > 0 && cotangents.mix != nullptr;
  T* const x_v = memory.template allocate<T>(n_x + (has_mix ? input.rank * prepared.weight_stride : 0));
  if (x_v == nullptr) return false;
  if (cotangents.x != nullptr) pack_rows(prepared.layout, cotangents.x, input.dim_in, input.n_nodes, x_v, executor);
  if (has_mix) prepared.pad_mix(cotangents.mix, x_v + n_x);
  const DoubleBackwardShared<T> shared{&prepared,
                                       cotangents,
                                       cotangents.x == nullptr ? nullptr : x_v,
                                       has_mix ? x_v + n_x : nullptr,
                                       transposed.data,
                                       transposed_v.data,
                                       grad_out,
                                       grad_grad_out,
                                       &targets,
                                       plan};
  const bool done = run_tasks<DoubleBackwardWorker<T>>(shared, plan.n_tasks, executor);
  if (done) targets.finish(prepared, plan, executor);
  return done;
}

template bool conv_double_backward<float>(const ConvInput<float>&, const ConvCotangents<float>&, const float*, float*,
                                          const ConvGradients<float>&, const Executor&);
template bool conv_double_backward<double>(const ConvInput<double>&, const ConvCotangents<double>&, const double*, double*,
                                           const ConvGradients<double>&, const Executor&);

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
