// Gradients of the convolution, schedule. One pass over the rows gives the gradients of the weights and of the harmonics (or
// vectors) and, per edge, the gradient of the source's features (a "message"); a second pass lets every node gather its
// messages in the fixed order of the transpose index. No atomics: the same bits for any number of threads.
//
// In this direction the gradient g of a row is shared by all its edges, so the coupling is contracted with g once per row and
// channel: Q[in][sh] = sum_out C g. Then, per edge and channel, with t[sh] = sum_in x Q:
//   grad w = <t, Y>     grad Y += w t     grad x = w (Q Y)
// Compiled once per instruction set.
#include "conv_gradients.h"
#include "isa.h"

namespace glassconv {
namespace GLASSCONV_ISA {

template <class T>
struct BackwardWork {
  const Segment<T>* segment;
  const Lanes<T>* sh;
  const Lanes<T>* x;
  const Lanes<T>* weight;
  int n_channels;
  const T* grad_out;  // this path's first element, in row 0
  int64_t out_width;
  Lanes<T>* grad_x;       // [n_channels * d_in], accumulated; null: not wanted
  Lanes<T>* grad_sh;      // [d_sh], accumulated; null: not wanted
  Lanes<T>* grad_weight;  // [n_channels]
};

template <class T, class Triple>
struct BackwardKernel {
  static void run(const BackwardWork<T>& work) {
    using V = Lanes<T>;
    using Matrix = CoupledMatrix<Triple, SumOver::kOut>;
    constexpr int d_in = Triple::d_in, d_sh = Triple::d_sh;
    const Segment<T>& segment = *work.segment;
    V q_lanes[Matrix::n_pairs * kChannelVectors<T>];
    for (int row = 0; row < segment.n_rows; ++row) {
      couple_with_gradient<T, Triple>(work.grad_out + segment.row[row] * work.out_width, work.n_channels, q_lanes);
      const T* const q = reinterpret_cast<const T*>(q_lanes);
      for (int b = segment.first_block[row]; b < segment.first_block[row + 1]; ++b) {
        V y[d_sh], grad_y[d_sh] = {};
        for (int m = 0; m < d_sh; ++m) y[m] = work.sh[m * kMaxBlocks + b];
        for (int c = 0; c < work.n_channels; ++c) {
          const V w = work.weight[c * kMaxBlocks + b];
          V x[d_in], t[d_sh] = {};
          for (int i = 0; i < d_in; ++i) x[i] = work.x[(c * d_in + i) * kMaxBlocks + b];
          Matrix::from_rows(x, q + c, t, kQStride<T>);
          work.grad_weight[c * kMaxBlocks + b] = dot<d_sh>(t, y);
          if (work.grad_sh != nullptr) {
            for (int m = 0; m < d_sh; ++m) grad_y[m] += w * t[m];
          }
          if (work.grad_x != nullptr) {
            V h[d_in] = {};
            Matrix::from_cols(y, q + c, h, kQStride<T>);
            for (int i = 0; i < d_in; ++i) work.grad_x[(c * d_in + i) * kMaxBlocks + b] += w * h[i];
          }
        }
        if (work.grad_sh != nullptr) {
          for (int m = 0; m < d_sh; ++m) work.grad_sh[m * kMaxBlocks + b] += grad_y[m];
        }
      }
    }
  }
};

template <class T>
struct BackwardShared {
  const ConvInput<T>* in;
  const T* grad_out;
  GradientTargets<T> targets;
  TaskPlan plan;
};

template <class T>
struct BackwardWorker {
  using Kernel = void (*)(const BackwardWork<T>&);
  const BackwardShared<T>* shared;
  EdgeTiles<T> edges;
  GradientTiles<T> grads;
  Lanes<T>* x;
  Lanes<T>* weight;
  Kernel* kernels;

  static BackwardWorker layout(const BackwardShared<T>& shared, Arena& arena) {
    const ConvInput<T>& in = *shared.in;
    BackwardWorker worker{&shared,
                          EdgeTiles<T>::layout(in, arena),
                          GradientTiles<T>::layout(in, shared.targets, arena),
                          arena.take<Lanes<T>>(kFeatureTile<T>),
                          arena.take<Lanes<T>>(kWeightTile<T>),
                          arena.take<Kernel>(in.n_paths)};
    for (int64_t p = 0; worker.kernels != nullptr && p < in.n_paths; ++p) {
      worker.kernels[p] = select_kernel<BackwardKernel, T, BackwardWork<T>>(in.paths[p]);
    }
    return worker;
  }

  void task(int64_t index) {
    const ConvInput<T>& in = *shared->in;
    Cursor cursor = first_row(in, shared->plan, index);
    T* const mix_part = shared->targets.mix_part(in, index);
    while (next_segment<T>(in, cursor, *edges.segment)) {
      edges.load();
      grads.clear(edges.segment->n_blocks);
      for_each_chunk(in, [&](const ChannelChunk& chunk) { run_chunk(chunk, mix_part); });
      if (grads.sh != nullptr) grads.store_angular(edges, nullptr, nullptr);
      if (grads.radial != nullptr) grads.store_radial(edges);
    }
  }

  void run_chunk(const ChannelChunk& chunk, T* mix_part) {
    const ConvInput<T>& in = *shared->in;
    const ConvPath& head = in.paths[chunk.path];
    const int64_t d_in = 2 * head.l_in + 1, first_col = head.in_offset + chunk.first * d_in;
    const Segment<T>& segment = *edges.segment;
    gather<T>({in.x, in.dim_in, in.n_nodes}, segment.source, segment.n_blocks, first_col, chunk.n * d_in, x);
    grads.clear_x(chunk.n * d_in);
    for (int64_t p = chunk.path; p < chunk.path_end; ++p) {
      const ConvPath& path = in.paths[p];
      const int64_t first = path.weight_offset + chunk.first;
      edges.load_weights(first, chunk.n, weight);
      kernels[p]({&segment, edges.sh + path.sh_offset * kMaxBlocks, x, weight, chunk.n,
                  shared->grad_out + path.out_offset + chunk.first * (2 * path.l_out + 1), in.dim_out, grads.x,
                  grads.sh == nullptr ? nullptr : grads.sh + path.sh_offset * kMaxBlocks, grads.weight});
      if (in.rank > 0) {
        grads.add_to_radial(edges, in.mix, first, chunk.n, grads.weight);
        grads.add_to_mix(edges, edges.radial, first, chunk.n, grads.weight, mix_part);
      } else if (shared->targets.out.weight != nullptr) {
        scatter<T>(grads.weight, segment.edge, segment.n_blocks, first, chunk.n,
                   {shared->targets.out.weight, in.n_weights, in.n_edges});
      }
    }
    grads.store_messages(edges, first_col, chunk.n * d_in);
  }
};

template <class T>
bool conv_backward(const ConvInput<T>& input, const T* grad_out, const ConvGradients<T>& gradients, const Executor& executor) {
  const TaskPlan plan = plan_tasks(input.n_nodes, gradients.mix == nullptr ? 0 : mix_bytes(input));
  GradientTargets<T> targets;
  if (!targets.allocate(input, gradients, plan)) return false;
  const BackwardShared<T> shared{&input, grad_out, targets, plan};
  const bool done = run_tasks<BackwardWorker<T>>(shared, plan.n_tasks, executor);
  if (done) targets.finish(input, plan, executor);
  targets.release();
  return done;
}

template bool conv_backward<float>(const ConvInput<float>&, const float*, const ConvGradients<float>&, const Executor&);
template bool conv_backward<double>(const ConvInput<double>&, const double*, const ConvGradients<double>&, const Executor&);

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
