// What the three directions of the convolution share: the order of the work and the preparation of a segment's tiles.
#pragma once

#include <stdlib.h>

#include "conv_tile.h"

namespace glassconv {
namespace GLASSCONV_ISA {

// The channels [first, first + n) of the input block at `in_offset`, and the paths that read it: input.paths[path, path_end).
struct ChannelChunk {
  int64_t path, path_end;
  int64_t first;
  int n;
};

// Calls body(chunk) for each chunk of channels of each input block. Paths are sorted by in_offset (checked by the caller).
template <class T, class Body>
GLASS_INLINE void for_each_chunk(const ConvInput<T>& in, const Body& body) {
  for (int64_t path = 0, end = 0; path < in.n_paths; path = end) {
    while (end < in.n_paths && in.paths[end].in_offset == in.paths[path].in_offset) ++end;
    const int64_t n_channels = in.paths[path].n_channels;
    const int64_t n_chunks = (n_channels + kChannelChunk - 1) / kChannelChunk;
    const int64_t size = n_chunks == 0 ? 0 : (n_channels + n_chunks - 1) / n_chunks;
    for (int64_t first = 0; first < n_channels; first += size) {
      body(ChannelChunk{path, end, first, static_cast<int>(n_channels - first < size ? n_channels - first : size)});
    }
  }
}

// Row ranges, one per task. They depend on the problem alone, so that sums over tasks do not depend on the threads.
// `bytes_per_task` is what each task must keep until the end (its share of the gradient of mix).
struct TaskPlan {
  int64_t n_tasks, rows_per_task;
};
inline TaskPlan plan_tasks(int64_t n_nodes, int64_t bytes_per_task) {
  constexpr int64_t kMaxTasks = 256, kMaxBytes = int64_t{64} << 20;
  int64_t n = n_nodes < kMaxTasks ? n_nodes : kMaxTasks;
  if (bytes_per_task > 0 && n * bytes_per_task > kMaxBytes) n = kMaxBytes / bytes_per_task;
  if (n < 1) n = 1;
  const int64_t rows = (n_nodes + n - 1) / n;
  return {rows == 0 ? 0 : (n_nodes + rows - 1) / rows, rows};
}

// A thread's working memory, kept between calls: on small graphs its page faults would take longer than the work.
class Workspace {
 public:
  ~Workspace() { free(memory_); }
  char* at_least(size_t bytes) {
    if (bytes > size_) {
      free(memory_);
      memory_ = static_cast<char*>(aligned_alloc(64, bytes));
      size_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_;
  }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// Runs worker.task(task) for every task; each thread has a Worker of its own, made by Worker::layout(shared, arena).
template <class Worker, class Shared>
bool run_tasks(const Shared& shared, int64_t n_tasks, const Executor& executor) {
  struct Context {
    const Shared* shared;
    int64_t n_tasks, next;
    bool failed;
  } context{&shared, n_tasks, 0, false};
  const int64_t n_workers = executor.n_threads < n_tasks ? executor.n_threads : n_tasks;
  executor(
      n_workers,
      [](void* raw, int64_t) {
        Context& c = *static_cast<Context*>(raw);
        Arena measure(nullptr);
        Worker::layout(*c.shared, measure);
        static thread_local Workspace workspace;
        char* const memory = workspace.at_least(measure.used() + 64);
        if (memory == nullptr) {
          __atomic_store_n(&c.failed, true, __ATOMIC_RELAXED);
          return;
        }
        Arena arena(memory);
        Worker worker = Worker::layout(*c.shared, arena);
        for (;;) {
          const int64_t task = __atomic_fetch_add(&c.next, int64_t{1}, __ATOMIC_RELAXED);
          if (task >= c.n_tasks) break;
          worker.task(task);
        }
      },
      &context);
  return !context.failed;
}

template <class T>
int64_t largest_l_sh(const ConvInput<T>& in) {
  int64_t l_max = 0;
  for (int64_t p = 0; p < in.n_paths; ++p) l_max = in.paths[p].l_sh > l_max ? in.paths[p].l_sh : l_max;
  return l_max;
}

// sh[m][block] of the vectors[axis][block]; for a direction `along`, also its directional derivative.
template <class T>
void harmonics_tile(const Lanes<T>* vectors, int n_blocks, int l_max, Lanes<T>* sh) {
  using V = Lanes<T>;
  for (int b = 0; b < n_blocks; ++b) {
    V r[3], y[kMaxHarmonics];
    for (int k = 0; k < 3; ++k) r[k] = vectors[k * kMaxBlocks + b];
    spherical_harmonics<V>(r, V{} + T(1), l_max, y);
    for (int m = 0; m < n_harmonics(l_max); ++m) sh[m * kMaxBlocks + b] = y[m];
  }
}

template <class T>
void harmonics_derivative_tile(const Lanes<T>* vectors, const Lanes<T>* along, int n_blocks, int l_max, Lanes<T>* sh_along) {
  using V = Lanes<T>;
  using J = Jet<V, 1>;
  for (int b = 0; b < n_blocks; ++b) {
    J r[3], y[kMaxHarmonics];
    for (int k = 0; k < 3; ++k) r[k] = J{vectors[k * kMaxBlocks + b], {along[k * kMaxBlocks + b]}};
    spherical_harmonics<J>(r, J{V{} + T(1), {V{}}}, l_max, y);
    for (int m = 0; m < n_harmonics(l_max); ++m) sh_along[m * kMaxBlocks + b] = y[m].along[0];
  }
}

// grad_vectors[axis] = sum_m grad_sh[m] dY_m/dr_axis, plus, for the second derivative along `along` (null: none),
// sum_m curvature_grad[m] d/dr_axis (dY_m/dr . along).
template <class T>
void harmonics_gradient_tile(const Lanes<T>* vectors, const Lanes<T>* grad_sh, const Lanes<T>* along,
                             const Lanes<T>* curvature_grad, int n_blocks, int l_max, Lanes<T>* grad_vectors) {
  using V = Lanes<T>;
  using J1 = Jet<V, 1>;
  using J3 = Jet<V, 3>;
  using J31 = Jet<J1, 3>;
  for (int b = 0; b < n_blocks; ++b) {
    V grad[3] = {};
    if (along == nullptr) {
      J3 r[3], y[kMaxHarmonics];
      for (int k = 0; k < 3; ++k) {
        r[k] = J3{vectors[k * kMaxBlocks + b], {}};
        r[k].along[k] = V{} + T(1);
      }
      spherical_harmonics<J3>(r, J3{V{} + T(1), {}}, l_max, y);
      for (int m = 1; m < n_harmonics(l_max); ++m) {
        for (int k = 0; k < 3; ++k) grad[k] += grad_sh[m * kMaxBlocks + b] * y[m].along[k];
      }
    } else {
      J31 r[3], y[kMaxHarmonics];
      for (int k = 0; k < 3; ++k) {
        r[k] = J31{J1{vectors[k * kMaxBlocks + b], {along[k * kMaxBlocks + b]}}, {}};
        r[k].along[k].value = V{} + T(1);
      }
      spherical_harmonics<J31>(r, J31{J1{V{} + T(1), {}}, {}}, l_max, y);
      for (int m = 1; m < n_harmonics(l_max); ++m) {
        for (int k = 0; k < 3; ++k) {
          grad[k] += grad_sh[m * kMaxBlocks + b] * y[m].along[k].value;
          grad[k] += curvature_grad[m * kMaxBlocks + b] * y[m].along[k].along[0];
        }
      }
    }
    for (int k = 0; k < 3; ++k) grad_vectors[k * kMaxBlocks + b] = grad[k];
  }
}

// The per-edge inputs of the current segment that do not depend on the path.
template <class T>
struct EdgeTiles {
  const ConvInput<T>* in;
  int l_max;
  Segment<T>* segment;
  Lanes<T>* vectors;  // [3]
  Lanes<T>* sh;       // [dim_sh]
  Lanes<T>* radial;   // [rank]

  static EdgeTiles layout(const ConvInput<T>& in, Arena& arena) {
    EdgeTiles tiles;
    tiles.in = &in;
    tiles.l_max = static_cast<int>(largest_l_sh(in));
    tiles.segment = arena.take<Segment<T>>(1);
    tiles.vectors = arena.take<Lanes<T>>(3 * kMaxBlocks);
    tiles.sh = arena.take<Lanes<T>>(in.dim_sh * kMaxBlocks);
    tiles.radial = arena.take<Lanes<T>>(in.rank * kMaxBlocks);
    return tiles;
  }
  Rows<const T> rows(const T* data, int64_t width) const { return {data, width, in->n_edges}; }

  void load() {
    const int n = segment->n_blocks;
    if (in->given_sh) {
      gather<T>(rows(in->angular, in->dim_sh), segment->edge, n, 0, in->dim_sh, sh);
    } else {
      gather<T>(rows(in->angular, 3), segment->edge, n, 0, 3, vectors);
      harmonics_tile<T>(vectors, n, l_max, sh);
    }
    if (in->rank > 0) gather<T>(rows(in->weight, in->rank), segment->edge, n, 0, in->rank, radial);
  }
  // weight[channel][block] of the weights first .. first + n.
  void load_weights(int64_t first, int n, Lanes<T>* weight) const {
    if (in->rank > 0) {
      multiply<T>({in->mix + first, 1, in->n_weights}, n, in->rank, segment->n_blocks, radial, weight, false);
    } else {
      gather<T>(rows(in->weight, in->n_weights), segment->edge, segment->n_blocks, first, n, weight);
    }
  }
};

// The number of the triple (l_in, l_sh, l_out) in GLASSCONV_FOR_EACH_TRIPLE's order is its place in a table of functions.
#define GLASSCONV_TRIPLE_ENTRY(a, b, c) \
  if (path.l_in == a && path.l_sh == b && path.l_out == c) return &Kernel<T, Triple<a, b, c>>::run;

template <template <class, class> class Kernel, class T, class Work>
auto select_kernel(const ConvPath& path) -> void (*)(const Work&) {
  GLASSCONV_FOR_EACH_TRIPLE(GLASSCONV_TRIPLE_ENTRY)
  return nullptr;
}
#undef GLASSCONV_TRIPLE_ENTRY

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
