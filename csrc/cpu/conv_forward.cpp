// Forward convolution, schedule: one task = a range of rows; segment by segment; channel chunk by channel chunk; path by path.
// Compiled once per instruction set.
#include "conv_schedule.h"
#include "isa.h"

namespace glassconv {
namespace GLASSCONV_ISA {

template <class T>
struct ForwardWork {
  const Segment<T>* segment;
  const Lanes<T>* sh;      // [d_sh] of this path
  const Lanes<T>* x;       // [n_channels * d_in]
  const Lanes<T>* weight;  // [n_channels]
  int n_channels;
  T* out;  // this path's first element, in row 0
  int64_t out_width;
};

template <class T, class Triple>
struct ForwardKernel {
  static void run(const ForwardWork<T>& work) {
    using V = Lanes<T>;
    using Matrix = CoupledMatrix<Triple, SumOver::kSh>;
    constexpr int d_in = Triple::d_in, d_sh = Triple::d_sh, d_out = Triple::d_out;
    const Segment<T>& segment = *work.segment;
    V matrix[kMaxBlocks * Matrix::n_pairs];
    for (int b = 0; b < segment.n_blocks; ++b) {
      V y[d_sh];
      for (int m = 0; m < d_sh; ++m) y[m] = work.sh[m * kMaxBlocks + b];
      Matrix::template form<T>(y, matrix + b * Matrix::n_pairs);
    }
    V sums[kChannelChunk * d_out + kLanes<T>];
    for (int row = 0; row < segment.n_rows; ++row) {
      const int first = segment.first_block[row], stop = segment.first_block[row + 1];
      for (int c = 0; c < work.n_channels; ++c) {
        V sum[d_out] = {};
        for (int b = first; b < stop; ++b) {
          const V w = work.weight[c * kMaxBlocks + b];
          V message[d_in];
          for (int i = 0; i < d_in; ++i) message[i] = w * work.x[(c * d_in + i) * kMaxBlocks + b];
          Matrix::from_rows(message, matrix + b * Matrix::n_pairs, sum);
        }
        for (int k = 0; k < d_out; ++k) sums[c * d_out + k] = sum[k];
      }
      add_lane_sums<T>(sums, work.n_channels * d_out, work.out + segment.row[row] * work.out_width);
    }
  }
};

template <class T>
struct ForwardShared {
  const ConvInput<T>* in;
  T* out;
  TaskPlan plan;
};

template <class T>
struct ForwardWorker {
  using Kernel = void (*)(const ForwardWork<T>&);
  const ForwardShared<T>* shared;
  EdgeTiles<T> edges;
  Lanes<T>* x;       // [kChannelChunk * kMaxDim]
  Lanes<T>* weight;  // [kChannelChunk]
  Kernel* kernels;   // of each path

  static ForwardWorker layout(const ForwardShared<T>& shared, Arena& arena) {
    ForwardWorker worker{&shared, EdgeTiles<T>::layout(*shared.in, arena),
                         arena.take<Lanes<T>>((kChannelChunk * kMaxDim + kLanes<T>)*kMaxBlocks),
                         arena.take<Lanes<T>>((kChannelChunk + kLanes<T>)*kMaxBlocks), arena.take<Kernel>(shared.in->n_paths)};
    for (int64_t p = 0; worker.kernels != nullptr && p < shared.in->n_paths; ++p) {
      worker.kernels[p] = select_kernel<ForwardKernel, T, ForwardWork<T>>(shared.in->paths[p]);
    }
    return worker;
  }

  void task(int64_t index) {
    const ConvInput<T>& in = *shared->in;
    const int64_t row = index * shared->plan.rows_per_task;
    const int64_t row_end = row + shared->plan.rows_per_task < in.n_nodes ? row + shared->plan.rows_per_task : in.n_nodes;
    memset(shared->out + row * in.dim_out, 0, sizeof(T) * static_cast<size_t>((row_end - row) * in.dim_out));
    Cursor cursor{row, row_end, in.row_ptr[row]};
    while (next_segment<T>(in, cursor, *edges.segment)) {
      edges.load();
      for_each_chunk(in, [&](const ChannelChunk& chunk) { run_chunk(chunk); });
    }
  }

  void run_chunk(const ChannelChunk& chunk) {
    const ConvInput<T>& in = *shared->in;
    const ConvPath& head = in.paths[chunk.path];
    const int64_t d_in = 2 * head.l_in + 1;
    const Segment<T>& segment = *edges.segment;
    gather<T>({in.x, in.dim_in, in.n_nodes}, segment.source, segment.n_blocks, head.in_offset + chunk.first * d_in,
              chunk.n * d_in, x);
    for (int64_t p = chunk.path; p < chunk.path_end; ++p) {
      const ConvPath& path = in.paths[p];
      edges.load_weights(path.weight_offset + chunk.first, chunk.n, weight);
      kernels[p]({&segment, edges.sh + path.sh_offset * kMaxBlocks, x, weight, chunk.n,
                  shared->out + path.out_offset + chunk.first * (2 * path.l_out + 1), in.dim_out});
    }
  }
};

template <class T>
bool conv_forward(const ConvInput<T>& input, T* out, const Executor& executor) {
  const ForwardShared<T> shared{&input, out, plan_tasks(input.n_nodes, 0)};
  return run_tasks<ForwardWorker<T>>(shared, shared.plan.n_tasks, executor);
}

template bool conv_forward<float>(const ConvInput<float>&, float*, const Executor&);
template bool conv_forward<double>(const ConvInput<double>&, double*, const Executor&);

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
