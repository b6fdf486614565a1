// Forward convolution, schedule: one task = a range of rows; segment by segment; path by path.
//
// The coupling of a path with an edge's harmonics, A[in][out] = sum_sh C Y, is formed with edges in lanes and shared by all
// channels; its entries are scalars that multiply vectors of channels. Compiled once per instruction set.
#include "conv_schedule.h"
#include "isa.h"

namespace glassconv {
namespace GLASSCONV_ISA {

template <class T>
struct ForwardWork {
  const Segment* segment;
  const Lanes<T>* sh;  // [d_sh][block] of this path
  const T* const* x;   // of each edge: packed features, with this path's input block at x_offset
  int64_t x_offset;
  const T* const* weight;  // of each edge, with this path's weights at weight_offset
  int64_t weight_offset;
  int64_t n_channels;
  T* matrix;  // room for [n_pairs][kMaxEdges]
  T* out;     // this path's first element, in row 0
  int64_t out_width;
};

template <class V, class Triple>
struct ForwardKernel {
  using T = Scalar<V>;
  static void run(const ForwardWork<T>& work) {
    using Matrix = CoupledMatrix<Triple, SumOver::kSh>;
    constexpr int d_in = Triple::d_in, d_out = Triple::d_out, width = kWidth<V>;
    const Segment& segment = *work.segment;
    couple_with_harmonics<T, Triple>(work.sh, n_blocks<T>(segment), work.matrix);
    for (int64_t first = 0; first < work.n_channels; first += width) {
      const int n = static_cast<int>(work.n_channels - first < width ? work.n_channels - first : width);
      const int64_t x_at = work.x_offset + first * d_in, weight_at = work.weight_offset + first;
      for (int row = 0; row < segment.n_rows; ++row) {
        V sum[d_out] = {};
        for (int e = segment.first_edge[row]; e < segment.first_edge[row + 1]; ++e) {
          V x[d_in], message[d_out] = {};
          load_vectors<V, d_in>(work.x[e] + x_at, x);
          Matrix::from_rows(x, work.matrix + e, message, kMaxEdges);
          const V w = load_vector<V>(work.weight[e] + weight_at);
          for (int k = 0; k < d_out; ++k) sum[k] += w * message[k];
        }
        add_transposed<V, d_out>(sum, n, work.out + segment.row[row] * work.out_width + first * d_out);
      }
    }
  }
};

template <class T>
struct ForwardShared {
  const Prepared<T>* prepared;
  T* out;
  TaskPlan plan;
};

template <class T>
struct ForwardWorker {
  using Kernel = void (*)(const ForwardWork<T>&);
  const ForwardShared<T>* shared;
  EdgeTiles<T> edges;
  T* matrix;
  Kernel* kernels;  // of each path

  static ForwardWorker layout(const ForwardShared<T>& shared, Arena& arena) {
    const ConvInput<T>& in = *shared.prepared->in;
    ForwardWorker worker{&shared, EdgeTiles<T>::layout(*shared.prepared, arena), arena.take<T>(kMaxPairs * kMaxEdges),
                         arena.take<Kernel>(in.n_paths)};
    if (worker.kernels == nullptr) return worker;
    for_each_path(*shared.prepared, [&](const InputBlock& block, int64_t p) {
      worker.kernels[p] = select_kernel<ForwardKernel, T, ForwardWork<T>>(in.paths[p], block.width);
    });
    return worker;
  }

  void task(int64_t index) {
    const ConvInput<T>& in = *shared->prepared->in;
    Cursor cursor = first_row(in, shared->plan, index);
    memset(shared->out + cursor.row * in.dim_out, 0,
           sizeof(T) * static_cast<size_t>((cursor.row_end - cursor.row) * in.dim_out));
    while (edges.next(cursor)) {
      for_each_path(*shared->prepared, [&](const InputBlock& block, int64_t p) {
        const ConvPath& path = in.paths[p];
        edges.prefetch(cursor, p);
        kernels[p]({edges.segment, edges.sh + path.sh_offset * kMaxBlocks<T>, edges.x, block.packed_offset, edges.weight.row,
                    path.weight_offset, path.n_channels, matrix, shared->out + path.out_offset, in.dim_out});
      });
    }
  }
};

template <class T>
bool conv_forward(const ConvInput<T>& input, T* out, const Executor& executor) {
  Prepared<T> prepared(input);
  if (!prepared.run(executor)) return false;
  const ForwardShared<T> shared{&prepared, out, plan_tasks(input.n_nodes, 0)};
  return run_tasks<ForwardWorker<T>>(shared, shared.plan.n_tasks, executor);
}

template bool conv_forward<float>(const ConvInput<float>&, float*, const Executor&);
template bool conv_forward<double>(const ConvInput<double>&, double*, const Executor&);

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
