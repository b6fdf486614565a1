// Gradients of the convolution, schedule. One pass over the rows gives the gradients of the weights and of the harmonics (or
// vectors) and, per edge, the gradient of the source's features (a "message"); a second pass lets every node gather its
// messages in the fixed order of the transpose index. No atomics: the same bits for any number of threads.
//
// In this direction the gradient g of a row is shared by all its edges, so the coupling is contracted with g once per row and
// channel: Q[in][sh] = sum_out C g. Then, per edge and channel, with t[sh] = sum_in x Q and h[in] = sum_sh Q Y:
//   grad w = <t, Y> = <x, h>     grad Y += w t     grad x = w h
// so that one of t and h is enough where only one of the gradients of Y and x is wanted.
// Compiled once per instruction set.
#include "conv_gradients.h"
#include "isa.h"

namespace glassconv {
namespace GLASSCONV_ISA {

template <class T>
struct BackwardWork {
  const Segment* segment;
  const T* sh;        // [d_sh][kMaxEdges] of this path
  const T* const* x;  // of each edge: packed features, with this path's input block at x_offset
  int64_t x_offset;
  const T* const* weight;  // of each edge, with this path's weights at weight_offset
  int64_t weight_offset;
  int64_t n_channels;
  const T* grad_out;  // this path's first element, in row 0
  int64_t out_width;
  T* grad_x;  // messages of this path's input block; null: not wanted
  int64_t grad_x_width;
  bool is_first;          // of the paths of its input block
  T* const* grad_weight;  // of each edge; null: not wanted
  T* grad_sh;             // [edge][dim_sh][lane] from this path's harmonics on; null: not wanted
  int64_t grad_sh_width, dim_sh;
};

template <class V, class Triple>
struct BackwardKernel {
  using T = Scalar<V>;
  using Matrix = CoupledMatrix<Triple, SumOver::kOut>;
  static constexpr int d_in = Triple::d_in, d_sh = Triple::d_sh, d_out = Triple::d_out, width = kWidth<V>;

  static void run(const BackwardWork<T>& work) {
    for (int64_t first = 0; first < work.n_channels; first += width) {
      const int n = static_cast<int>(work.n_channels - first < width ? work.n_channels - first : width);
      if (work.grad_sh == nullptr) {
        run_chunk<false>(work, first, n);
      } else {
        run_chunk<true>(work, first, n);
      }
    }
  }

  template <bool want_sh>
  static __attribute__((noinline)) void run_chunk(const BackwardWork<T>& work, int64_t first, int n) {
    const Segment& segment = *work.segment;
    const int64_t x_at = work.x_offset + first * d_in, weight_at = work.weight_offset + first;
    const KeepFirst<V> keep(n);  // beyond are the weights of other paths
    V q[Matrix::n_pairs];
    for (int row = 0; row < segment.n_rows; ++row) {
      couple_with_gradient<V, Triple>(work.grad_out + segment.row[row] * work.out_width + first * d_out, n, q);
      for (int e = segment.first_edge[row]; e < segment.first_edge[row + 1]; ++e) {
        const V w = keep(load_vector<V>(work.weight[e] + weight_at));
        V x[d_in], y[d_sh], grad_w;
        load_vectors<V, d_in>(work.x[e] + x_at, x);
        load_harmonics<V, d_sh>(work.sh + e, y);
        if constexpr (want_sh) {
          V t[d_sh] = {};
          Matrix::from_rows(x, q, t);
          grad_w = dot<d_sh>(t, y);
          T* const sums = work.grad_sh + e * work.dim_sh * work.grad_sh_width;
          for (int m = 0; m < d_sh; ++m) {
            T* const sum = sums + m * work.grad_sh_width;
            store_vector<V>(sum, load_vector<V>(sum) + w * t[m]);
          }
        }
        if (!want_sh || work.grad_x != nullptr) {
          V h[d_in] = {};
          Matrix::from_cols(y, q, h);
          if constexpr (!want_sh) {
            grad_w = dot<d_in>(x, h);
          }
          if (work.grad_x != nullptr) {
            T* const message = work.grad_x + e * work.grad_x_width + first * d_in;
            if (work.is_first) {
              for (int i = 0; i < d_in; ++i) store_vector<V>(message + i * width, w * h[i]);
            } else {
              for (int i = 0; i < d_in; ++i) {
                store_vector<V>(message + i * width, load_vector<V>(message + i * width) + w * h[i]);
              }
            }
          }
        }
        if (work.grad_weight != nullptr) {
          T* const to = work.grad_weight[e] + weight_at;
          if (n == width) {
            store_vector<V>(to, grad_w);
          } else {
            store_first<V>(to, grad_w, n);
          }
        }
      }
    }
  }
};

template <class T>
struct BackwardShared {
  const Prepared<T>* prepared;
  const T* grad_out;
  const T* mix_transposed;
  const GradientTargets<T>* targets;
  TaskPlan plan;
};

template <class T>
struct BackwardWorker {
  using Kernel = void (*)(const BackwardWork<T>&);
  const BackwardShared<T>* shared;
  EdgeTiles<T> edges;
  GradientTiles<T> grads;
  Kernel* kernels;  // of each path

  static BackwardWorker layout(const BackwardShared<T>& shared, Arena& arena) {
    const ConvInput<T>& in = *shared.prepared->in;
    BackwardWorker worker{&shared, EdgeTiles<T>::layout(*shared.prepared, arena),
                          GradientTiles<T>::layout(*shared.prepared, *shared.targets, false, arena),
                          arena.take<Kernel>(in.n_paths)};
    if (worker.kernels == nullptr) return worker;
    for_each_path(*shared.prepared, [&](const InputBlock& block, int64_t p) {
      worker.kernels[p] = select_kernel<BackwardKernel, T, BackwardWork<T>>(in.paths[p], block.width);
    });
    return worker;
  }

  void task(int64_t index) {
    const ConvInput<T>& in = *shared->prepared->in;
    Cursor cursor = first_row(in, shared->plan, index);
    T* const mix_part = shared->targets->mix_part(*shared->prepared, index);
    while (edges.next(cursor)) {
      prefetch_gradients(*shared->prepared, cursor, shared->grad_out);
      grads.begin(*edges.segment);
      for_each_path(*shared->prepared, [&](const InputBlock& block, int64_t p) {
        const ConvPath& path = in.paths[p];
        edges.prefetch(cursor, p);
        kernels[p]({edges.segment, reinterpret_cast<const T*>(edges.sh + path.sh_offset * kMaxBlocks<T>), edges.x,
                    block.packed_offset, edges.weight.row, path.weight_offset, path.n_channels,
                    shared->grad_out + path.out_offset, in.dim_out,
                    grads.message == nullptr ? nullptr : grads.message + block.packed_offset, shared->prepared->layout.width,
                    p == block.path, grads.weight, grads.sh == nullptr ? nullptr : grads.sh + path.sh_offset * grads.sh_width,
                    grads.sh_width, in.dim_sh});
      });
      grads.store_messages(*edges.segment);
      if (grads.sh != nullptr) grads.store_angular(edges, nullptr);
      if (in.rank > 0) {
        grads.store_radial(edges, shared->mix_transposed, grads.weight, false);
        grads.add_to_mix(edges, edges.radial, grads.weight, mix_part);
      }
    }
  }
};

template <class T>
bool conv_backward(const ConvInput<T>& input, const T* grad_out, const ConvGradients<T>& gradients, const Executor& executor) {
  Prepared<T> prepared(input);
  const TaskPlan plan = plan_tasks(input.n_nodes, gradients.mix == nullptr ? 0 : prepared.mix_bytes());
  GradientTargets<T> targets;
  TransposedMix<T> transposed;
  if (!prepared.run(executor) || !targets.allocate(prepared, gradients, plan) || !transposed.run(prepared, input.mix))
    return false;
  const BackwardShared<T> shared{&prepared, grad_out, transposed.data, &targets, plan};
  const bool done = run_tasks<BackwardWorker<T>>(shared, plan.n_tasks, executor);
  if (done) targets.finish(prepared, plan, executor);
  return done;
}

template bool conv_backward<float>(const ConvInput<float>&, const float*, const ConvGradients<float>&, const Executor&);
template bool conv_backward<double>(const ConvInput<double>&, const double*, const ConvGradients<double>&, const Executor&);

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
