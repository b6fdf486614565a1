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
  const Segment<T>* segment;
  const Lanes<T>*sh, *sh_v;          // Y, vY
  const Lanes<T>*x, *x_v;            // x, vx
  const Lanes<T>*weight, *weight_v;  // w, vw
  int n_channels;
  const T* grad_out;
  T* grad_grad_out;  // null: not wanted
  int64_t out_width;
  Lanes<T>* grad_x;
  Lanes<T>* grad_sh;
  Lanes<T>* curvature;
  Lanes<T>*grad_weight, *first_weight;  // dT/dw and dS/dw
};

template <class T, class Triple>
struct DoubleBackwardKernel {
  static constexpr int d_in = Triple::d_in, d_sh = Triple::d_sh, d_out = Triple::d_out;
  using V = Lanes<T>;

  static void run(const DoubleBackwardWork<T>& work) {
    if (work.grad_grad_out != nullptr) run_forward_part(work);
    run_gradient_part(work);
  }

  static GLASS_INLINE void load_sh(const Lanes<T>* sh, int b, V* y) {
    for (int m = 0; m < d_sh; ++m) y[m] = sh[m * kMaxBlocks + b];
  }

  static __attribute__((noinline)) void run_forward_part(const DoubleBackwardWork<T>& work) {
    using Matrix = CoupledMatrix<Triple, SumOver::kSh>;
    constexpr int n = Matrix::n_pairs;
    const Segment<T>& segment = *work.segment;
    V matrix[kMaxBlocks * n], matrix_v[kMaxBlocks * n];
    for (int b = 0; b < segment.n_blocks; ++b) {
      V y[d_sh];
      load_sh(work.sh, b, y);
      Matrix::template form<T>(y, matrix + b * n);
      load_sh(work.sh_v, b, y);
      Matrix::template form<T>(y, matrix_v + b * n);
    }
    V sums[kChannelChunk * d_out + kLanes<T>];
    for (int row = 0; row < segment.n_rows; ++row) {
      for (int c = 0; c < work.n_channels; ++c) {
        V sum[d_out] = {};
        for (int b = segment.first_block[row]; b < segment.first_block[row + 1]; ++b) {
          const V w = work.weight[c * kMaxBlocks + b], w_v = work.weight_v[c * kMaxBlocks + b];
          V along_y[d_in], along_v[d_in];
          for (int i = 0; i < d_in; ++i) {
            const V x = work.x[(c * d_in + i) * kMaxBlocks + b], x_v = work.x_v[(c * d_in + i) * kMaxBlocks + b];
            along_y[i] = w * x_v + w_v * x;
            along_v[i] = w * x;
          }
          Matrix::from_rows(along_y, matrix + b * n, sum);
          Matrix::from_rows(along_v, matrix_v + b * n, sum);
        }
        for (int k = 0; k < d_out; ++k) sums[c * d_out + k] = sum[k];
      }
      add_lane_sums<T>(sums, work.n_channels * d_out, work.grad_grad_out + segment.row[row] * work.out_width);
    }
  }

  static __attribute__((noinline)) void run_gradient_part(const DoubleBackwardWork<T>& work) {
    using Matrix = CoupledMatrix<Triple, SumOver::kOut>;
    const Segment<T>& segment = *work.segment;
    V q_lanes[Matrix::n_pairs * kChannelVectors<T>];
    for (int row = 0; row < segment.n_rows; ++row) {
      couple_with_gradient<T, Triple>(work.grad_out + segment.row[row] * work.out_width, work.n_channels, q_lanes);
      const T* const q = reinterpret_cast<const T*>(q_lanes);
      for (int b = segment.first_block[row]; b < segment.first_block[row + 1]; ++b) {
        V y[d_sh], y_v[d_sh], grad_y[d_sh] = {}, curvature[d_sh] = {};
        load_sh(work.sh, b, y);
        load_sh(work.sh_v, b, y_v);
        for (int c = 0; c < work.n_channels; ++c) {
          const V w = work.weight[c * kMaxBlocks + b], w_v = work.weight_v[c * kMaxBlocks + b];
          V x[d_in], t[d_sh] = {}, t_v[d_sh] = {};
          for (int i = 0; i < d_in; ++i) x[i] = work.x[(c * d_in + i) * kMaxBlocks + b];
          Matrix::from_rows(x, q + c, t, kQStride<T>);
          for (int i = 0; i < d_in; ++i) x[i] = work.x_v[(c * d_in + i) * kMaxBlocks + b];
          Matrix::from_rows(x, q + c, t_v, kQStride<T>);
          work.first_weight[c * kMaxBlocks + b] = dot<d_sh>(t, y);
          work.grad_weight[c * kMaxBlocks + b] = dot<d_sh>(t_v, y) + dot<d_sh>(t, y_v);
          if (work.grad_sh != nullptr) {
            for (int m = 0; m < d_sh; ++m) {
              grad_y[m] += w * t_v[m] + w_v * t[m];
              curvature[m] += w * t[m];
            }
          }
          if (work.grad_x != nullptr) {
            V combined[d_sh], h[d_in] = {};
            for (int m = 0; m < d_sh; ++m) combined[m] = w * y_v[m] + w_v * y[m];
            Matrix::from_cols(combined, q + c, h, kQStride<T>);
            for (int i = 0; i < d_in; ++i) work.grad_x[(c * d_in + i) * kMaxBlocks + b] += h[i];
          }
        }
        if (work.grad_sh != nullptr) {
          for (int m = 0; m < d_sh; ++m) {
            work.grad_sh[m * kMaxBlocks + b] += grad_y[m];
            work.curvature[m * kMaxBlocks + b] += curvature[m];
          }
        }
      }
    }
  }
};

template <class T>
struct DoubleBackwardShared {
  const ConvInput<T>* in;
  ConvCotangents<T> v;
  const T* grad_out;
  T* grad_grad_out;
  GradientTargets<T> targets;
  TaskPlan plan;
};

// The cotangents of the current segment, as tiles; zero where no cotangent was given.
template <class T>
struct CotangentTiles {
  Lanes<T>* vectors;  // [3]
  Lanes<T>* sh;       // [dim_sh]
  Lanes<T>* radial;   // [rank]
  Lanes<T>* x;
  Lanes<T>* weight;

  static CotangentTiles layout(const ConvInput<T>& in, Arena& arena) {
    return {arena.take<Lanes<T>>(3 * kMaxBlocks), arena.take<Lanes<T>>(in.dim_sh * kMaxBlocks),
            arena.take<Lanes<T>>(in.rank * kMaxBlocks), arena.take<Lanes<T>>(kFeatureTile<T>),
            arena.take<Lanes<T>>(kWeightTile<T>)};
  }

  void load(const ConvInput<T>& in, const ConvCotangents<T>& v, const EdgeTiles<T>& edges) const {
    const Segment<T>& s = *edges.segment;
    if (v.angular == nullptr) {
      GradientTiles<T>::zero(sh, in.dim_sh, s.n_blocks);
      GradientTiles<T>::zero(vectors, 3, s.n_blocks);
    } else if (in.given_sh) {
      gather<T>(edges.rows(v.angular, in.dim_sh), s.edge, s.n_blocks, 0, in.dim_sh, sh);
    } else {
      gather<T>(edges.rows(v.angular, 3), s.edge, s.n_blocks, 0, 3, vectors);
      harmonics_derivative_tile<T>(edges.vectors, vectors, s.n_blocks, edges.l_max, sh);
    }
    if (in.rank > 0 && v.weight != nullptr) gather<T>(edges.rows(v.weight, in.rank), s.edge, s.n_blocks, 0, in.rank, radial);
  }
  void load_weights(const ConvInput<T>& in, const ConvCotangents<T>& v, const EdgeTiles<T>& edges, int64_t first, int n) const {
    const Segment<T>& s = *edges.segment;
    if (in.rank == 0 && v.weight != nullptr) {
      gather<T>(edges.rows(v.weight, in.n_weights), s.edge, s.n_blocks, first, n, weight);
      return;
    }
    GradientTiles<T>::zero(weight, n, s.n_blocks);
    if (in.rank == 0) return;
    if (v.weight != nullptr) multiply<T>({in.mix + first, 1, in.n_weights}, n, in.rank, s.n_blocks, radial, weight, true);
    if (v.mix != nullptr) multiply<T>({v.mix + first, 1, in.n_weights}, n, in.rank, s.n_blocks, edges.radial, weight, true);
  }
};

template <class T>
struct DoubleBackwardWorker {
  using Kernel = void (*)(const DoubleBackwardWork<T>&);
  const DoubleBackwardShared<T>* shared;
  EdgeTiles<T> edges;
  CotangentTiles<T> v;
  GradientTiles<T> grads;
  Lanes<T>* x;
  Lanes<T>* weight;
  Lanes<T>* first_weight;
  Kernel* kernels;

  static DoubleBackwardWorker layout(const DoubleBackwardShared<T>& shared, Arena& arena) {
    const ConvInput<T>& in = *shared.in;
    DoubleBackwardWorker worker{&shared,
                                EdgeTiles<T>::layout(in, arena),
                                CotangentTiles<T>::layout(in, arena),
                                GradientTiles<T>::layout(in, shared.targets, arena),
                                arena.take<Lanes<T>>(kFeatureTile<T>),
                                arena.take<Lanes<T>>(kWeightTile<T>),
                                arena.take<Lanes<T>>(kWeightTile<T>),
                                arena.take<Kernel>(in.n_paths)};
    for (int64_t p = 0; worker.kernels != nullptr && p < in.n_paths; ++p) {
      worker.kernels[p] = select_kernel<DoubleBackwardKernel, T, DoubleBackwardWork<T>>(in.paths[p]);
    }
    return worker;
  }

  void task(int64_t index) {
    const ConvInput<T>& in = *shared->in;
    Cursor cursor = first_row(in, shared->plan, index);
    T* const mix_part = shared->targets.mix_part(in, index);
    if (shared->grad_grad_out != nullptr) {
      memset(shared->grad_grad_out + cursor.row * in.dim_out, 0,
             sizeof(T) * static_cast<size_t>((cursor.row_end - cursor.row) * in.dim_out));
    }
    while (next_segment<T>(in, cursor, *edges.segment)) {
      edges.load();
      v.load(in, shared->v, edges);
      grads.clear(edges.segment->n_blocks);
      for_each_chunk(in, [&](const ChannelChunk& chunk) { run_chunk(chunk, mix_part); });
      if (grads.sh != nullptr) grads.store_angular(edges, v.vectors, grads.curvature);
      if (grads.radial != nullptr) grads.store_radial(edges);
    }
  }

  void run_chunk(const ChannelChunk& chunk, T* mix_part) {
    const ConvInput<T>& in = *shared->in;
    const ConvPath& head = in.paths[chunk.path];
    const int64_t d_in = 2 * head.l_in + 1, first_col = head.in_offset + chunk.first * d_in;
    const Segment<T>& segment = *edges.segment;
    gather<T>({in.x, in.dim_in, in.n_nodes}, segment.source, segment.n_blocks, first_col, chunk.n * d_in, x);
    if (shared->v.x == nullptr) {
      GradientTiles<T>::zero(v.x, chunk.n * d_in, segment.n_blocks);
    } else {
      gather<T>({shared->v.x, in.dim_in, in.n_nodes}, segment.source, segment.n_blocks, first_col, chunk.n * d_in, v.x);
    }
    grads.clear_x(chunk.n * d_in);
    for (int64_t p = chunk.path; p < chunk.path_end; ++p) run_path(p, chunk, mix_part);
    grads.store_messages(edges, first_col, chunk.n * d_in);
  }

  void run_path(int64_t p, const ChannelChunk& chunk, T* mix_part) {
    const ConvInput<T>& in = *shared->in;
    const ConvPath& path = in.paths[p];
    const int64_t first = path.weight_offset + chunk.first, sh_at = path.sh_offset * kMaxBlocks;
    const int64_t out_at = path.out_offset + chunk.first * (2 * path.l_out + 1);
    edges.load_weights(first, chunk.n, weight);
    v.load_weights(in, shared->v, edges, first, chunk.n);
    kernels[p]({edges.segment, edges.sh + sh_at, v.sh + sh_at, x, v.x, weight, v.weight, chunk.n, shared->grad_out + out_at,
                shared->grad_grad_out == nullptr ? nullptr : shared->grad_grad_out + out_at, in.dim_out, grads.x,
                grads.sh == nullptr ? nullptr : grads.sh + sh_at, grads.sh == nullptr ? nullptr : grads.curvature + sh_at,
                grads.weight, first_weight});
    if (in.rank == 0) {
      if (shared->targets.out.weight != nullptr) {
        scatter<T>(grads.weight, edges.segment->edge, edges.segment->n_blocks, first, chunk.n,
                   {shared->targets.out.weight, in.n_weights, in.n_edges});
      }
      return;
    }
    grads.add_to_radial(edges, in.mix, first, chunk.n, grads.weight);
    grads.add_to_mix(edges, edges.radial, first, chunk.n, grads.weight, mix_part);
    if (shared->v.mix != nullptr) grads.add_to_radial(edges, shared->v.mix, first, chunk.n, first_weight);
    if (shared->v.weight != nullptr) grads.add_to_mix(edges, v.radial, first, chunk.n, first_weight, mix_part);
  }
};

template <class T>
bool conv_double_backward(const ConvInput<T>& input, const ConvCotangents<T>& cotangents, const T* grad_out, T* grad_grad_out,
                          const ConvGradients<T>& gradients, const Executor& executor) {
  const TaskPlan plan = plan_tasks(input.n_nodes, gradients.mix == nullptr ? 0 : mix_bytes(input));
  GradientTargets<T> targets;
  if (!targets.allocate(input, gradients, plan)) return false;
  const DoubleBackwardShared<T> shared{&input, cotangents, grad_out, grad_grad_out, targets, plan};
  const bool done = run_tasks<DoubleBackwardWorker<T>>(shared, plan.n_tasks, executor);
  if (done) targets.finish(input, plan, executor);
  targets.release();
  return done;
}

template bool conv_double_backward<float>(const ConvInput<float>&, const ConvCotangents<float>&, const float*, float*,
                                          const ConvGradients<float>&, const Executor&);
template bool conv_double_backward<double>(const ConvInput<double>&, const ConvCotangents<double>&, const double*, double*,
                                           const ConvGradients<double>&, const Executor&);

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
