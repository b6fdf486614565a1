// What the three directions of the convolution share: the order of the work, the layout of the features, and what of a segment
// does not depend on the path.
#pragma once

#include <stdlib.h>

#include "conv_tile.h"
#include "scratch.h"

namespace glassconv {
namespace GLASSCONV_ISA {

// An input block, the paths [path, path_end) that read it, and where it lies in packed rows.
struct InputBlock {
  int64_t path, path_end;
  int64_t offset, n_channels;  // in the caller's layout
  int d_in;
  int width;              // channels in a vector
  int64_t n_chunks;       // vectors of channels
  int64_t packed_offset;  // in packed rows
};

// Memory for one call.
class Block {
 public:
  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    if (memory_ != nullptr) free_block(memory_);
  }
  // Once. Null: there is none.
  template <class E>
  E* allocate(int64_t n) {
    try {
      memory_ = allocate_block(static_cast<size_t>(n) * sizeof(E) + 64);
    } catch (...) {  // std::bad_alloc
    }
    return static_cast<E*>(memory_);
  }

 private:
  void* memory_ = nullptr;
};

// The layout of packed features. Paths are sorted by in_offset (checked by the caller).
template <class T>
class PackedLayout {
 public:
  InputBlock* blocks = nullptr;  // those that a path reads
  int64_t n_blocks = 0;
  int64_t width = 0;    // of a packed row
  int64_t n_read = 0;   // columns of the caller's rows that some path reads
  bool is_half = true;  // no block has vectors wider than HalfLanes<T>

  bool find(const ConvInput<T>& in) {
    blocks = memory_.allocate<InputBlock>(in.n_paths);
    if (blocks == nullptr) return false;
    for (int64_t path = 0, end = 0; path < in.n_paths; path = end) {
      const ConvPath& head = in.paths[path];
      while (end < in.n_paths && in.paths[end].in_offset == head.in_offset) ++end;
      if (head.n_channels == 0) continue;
      const int d_in = static_cast<int>(2 * head.l_in + 1);
      const int width_of = head.n_channels <= kWidth<HalfLanes<T>> ? kWidth<HalfLanes<T>> : kLanes<T>;
      const int64_t n_chunks = (head.n_channels + width_of - 1) / width_of;
      width = (width + width_of - 1) / width_of * width_of;
      blocks[n_blocks++] = {path, end, head.in_offset, head.n_channels, d_in, width_of, n_chunks, width};
      width += n_chunks * width_of * d_in;
      n_read += head.n_channels * d_in;
      is_half = is_half && width_of == kWidth<HalfLanes<T>>;
    }
    width = padded<T>(width);
    return true;
  }

 private:
  Block memory_;
};

template <class T>
void pack_row(const PackedLayout<T>& layout, const T* row, T* packed) {
  memset(packed, 0, sizeof(T) * static_cast<size_t>(layout.width));
  for (int64_t k = 0; k < layout.n_blocks; ++k) {
    const InputBlock& block = layout.blocks[k];
    const T* from = row + block.offset;
    T* to = packed + block.packed_offset;
    for (int64_t left = block.n_channels; left > 0; left -= block.width, to += block.d_in * block.width) {
      for (int64_t c = 0; c < block.width && c < left; ++c) {
        for (int m = 0; m < block.d_in; ++m) to[m * block.width + c] = *from++;
      }
    }
  }
}

// The columns [first, stop) of a packed row, given from `first` on, to where they belong in the caller's row.
template <class T>
void unpack_columns(const PackedLayout<T>& layout, const T* packed, int64_t first, int64_t stop, T* row) {
  for (int64_t k = 0; k < layout.n_blocks; ++k) {
    const InputBlock& block = layout.blocks[k];
    const int64_t end = block.packed_offset + block.n_chunks * block.width * block.d_in;
    for (int64_t at = block.packed_offset > first ? block.packed_offset : first; at < stop && at < end; at += block.width) {
      const int64_t vector = (at - block.packed_offset) / block.width;  // (chunk, m); columns are cut between vectors
      const int64_t m = vector % block.d_in, channel = vector / block.d_in * block.width;
      T* const to = row + block.offset + channel * block.d_in + m;
      const int64_t n = block.n_channels - channel < block.width ? block.n_channels - channel : block.width;
      for (int64_t c = 0; c < n; ++c) to[c * block.d_in] = packed[at - first + c];
    }
  }
}

// Calls body(first, stop) for ranges of `n` rows, on all threads.
template <class Body>
void for_each_range(int64_t n, const Executor& executor, const Body& body) {
  constexpr int64_t kRows = 256;
  struct Context {
    const Body* body;
    int64_t n;
  } context{&body, n};
  executor((n + kRows - 1) / kRows,
           [](void* raw, int64_t task) {
             const Context& c = *static_cast<const Context*>(raw);
             const int64_t first = task * kRows;
             (*c.body)(first, first + kRows < c.n ? first + kRows : c.n);
           },
           &context);
}

template <class T>
void pack_rows(const PackedLayout<T>& layout, const T* rows, int64_t width, int64_t n, T* packed, const Executor& executor) {
  for_each_range(n, executor, [&](int64_t first, int64_t stop) {
    for (int64_t i = first; i < stop; ++i) pack_row(layout, rows + i * width, packed + i * layout.width);
  });
}

// What a call prepares before its tasks begin.
template <class T>
class Prepared {
 public:
  const ConvInput<T>* in;
  PackedLayout<T> layout;
  T* x = nullptr;             // (n_nodes, layout.width)
  T* mix = nullptr;           // (rank, weight_stride)
  int max_edges = kMaxEdges;  // of a segment
  int64_t weight_stride;      // of a row of weights in a tile, with room to read a vector from each of its elements

  explicit Prepared(const ConvInput<T>& input) : in(&input), weight_stride(padded<T>(input.n_weights) + kLanes<T>) {
    constexpr int64_t kTileBytes = 256 << 10;  // the weights of a segment stay in the second-level cache
    while (max_edges > 16 && max_edges * weight_stride * static_cast<int64_t>(sizeof(T)) > kTileBytes) max_edges /= 2;
  }

  bool run(const Executor& executor) {
    if (!layout.find(*in)) return false;
    const int64_t n_x = in->n_nodes * layout.width, n_mix = in->rank * weight_stride;
    x = memory_.template allocate<T>(n_x + n_mix);
    if (x == nullptr) return false;
    mix = x + n_x;
    pack_rows(layout, in->x, in->dim_in, in->n_nodes, x, executor);
    pad_mix(in->mix, mix);
    return true;
  }

  // (rank, n_weights) -> (rank, weight_stride)
  void pad_mix(const T* from, T* to) const {
    for (int64_t h = 0; h < in->rank; ++h) {
      memcpy(to + h * weight_stride, from + h * in->n_weights, sizeof(T) * static_cast<size_t>(in->n_weights));
      memset(to + h * weight_stride + in->n_weights, 0, sizeof(T) * static_cast<size_t>(weight_stride - in->n_weights));
    }
  }
  int64_t mix_bytes() const { return in->rank * weight_stride * static_cast<int64_t>(sizeof(T)); }

 private:
  Block memory_;
};

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
class ThreadMemory {
 public:
  ~ThreadMemory() { free(memory_); }
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
        static thread_local ThreadMemory workspace;
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
Cursor first_row(const ConvInput<T>& in, const TaskPlan& plan, int64_t task) {
  const int64_t row = task * plan.rows_per_task, stop = row + plan.rows_per_task;
  return {row, stop < in.n_nodes ? stop : in.n_nodes, in.row_ptr[row]};
}

// Calls body(block, path), the paths of one input block after the other.
template <class T, class Body>
GLASS_INLINE void for_each_path(const Prepared<T>& prepared, const Body& body) {
  for (int64_t k = 0; k < prepared.layout.n_blocks; ++k) {
    const InputBlock& block = prepared.layout.blocks[k];
    for (int64_t path = block.path; path < block.path_end; ++path) body(block, path);
  }
}

// Entries of the largest coupled matrix: that of (4, 4, 4) has 9 x 9 at most.
inline constexpr int kMaxPairs = kMaxDim * kMaxDim;

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
    for (int k = 0; k < 3; ++k) r[k] = vectors[k * kMaxBlocks<T> + b];
    spherical_harmonics<V>(r, V{} + T(1), l_max, y);
    for (int m = 0; m < n_harmonics(l_max); ++m) sh[m * kMaxBlocks<T> + b] = y[m];
  }
}

template <class T>
void harmonics_derivative_tile(const Lanes<T>* vectors, const Lanes<T>* along, int n_blocks, int l_max, Lanes<T>* sh_along) {
  using V = Lanes<T>;
  using J = Jet<V, 1>;
  for (int b = 0; b < n_blocks; ++b) {
    J r[3], y[kMaxHarmonics];
    for (int k = 0; k < 3; ++k) r[k] = J{vectors[k * kMaxBlocks<T> + b], {along[k * kMaxBlocks<T> + b]}};
    spherical_harmonics<J>(r, J{V{} + T(1), {V{}}}, l_max, y);
    for (int m = 0; m < n_harmonics(l_max); ++m) sh_along[m * kMaxBlocks<T> + b] = y[m].along[0];
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
        r[k] = J3{vectors[k * kMaxBlocks<T> + b], {}};
        r[k].along[k] = V{} + T(1);
      }
      spherical_harmonics<J3>(r, J3{V{} + T(1), {}}, l_max, y);
      for (int m = 1; m < n_harmonics(l_max); ++m) {
        for (int k = 0; k < 3; ++k) grad[k] += grad_sh[m * kMaxBlocks<T> + b] * y[m].along[k];
      }
    } else {
      J31 r[3], y[kMaxHarmonics];
      for (int k = 0; k < 3; ++k) {
        r[k] = J31{J1{vectors[k * kMaxBlocks<T> + b], {along[k * kMaxBlocks<T> + b]}}, {}};
        r[k].along[k].value = V{} + T(1);
      }
      spherical_harmonics<J31>(r, J31{J1{V{} + T(1), {}}, {}}, l_max, y);
      for (int m = 1; m < n_harmonics(l_max); ++m) {
        for (int k = 0; k < 3; ++k) {
          grad[k] += grad_sh[m * kMaxBlocks<T> + b] * y[m].along[k].value;
          grad[k] += curvature_grad[m * kMaxBlocks<T> + b] * y[m].along[k].along[0];
        }
      }
    }
    for (int k = 0; k < 3; ++k) grad_vectors[k * kMaxBlocks<T> + b] = grad[k];
  }
}

// Brings a row of what comes next into the second-level cache, while there is work on what came before.
template <class T>
GLASS_INLINE void prefetch_row(const T* row, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) {
#if defined(__x86_64__)
    asm volatile("prefetcht1 %0"
                 :
                 : "m"(row[i]));  // g++ takes functions that only prefetch for empty ones, and leaves them out
#else
    __builtin_prefetch(row + i, 0, 2);
#endif
  }
}

// The weights of the edges of a segment, one pointer per edge to as many elements as a row has, and a vector more to read.
template <class T>
struct WeightRows {
  T* tile;        // [kMaxEdges][weight_stride]
  const T** row;  // of each edge

  static WeightRows layout(const Prepared<T>& prepared, Arena& arena) {
    return {arena.take<T>(prepared.max_edges * prepared.weight_stride), arena.take<const T*>(kMaxEdges)};
  }
  // From an array (n_edges, n_weights): in place, but for the rows at its very end.
  void point_to(const Prepared<T>& prepared, const T* weight, const Segment& segment) const {
    const ConvInput<T>& in = *prepared.in;
    const int64_t size = in.n_edges * in.n_weights;
    for (int e = 0; e < segment.n_edges; ++e) {
      const int64_t at = segment.edge[e] * in.n_weights;
      row[e] = weight + at;
      if (at + in.n_weights + kLanes<T> <= size) continue;
      T* const copy = tile + e * prepared.weight_stride;
      memcpy(copy, weight + at, sizeof(T) * static_cast<size_t>(in.n_weights));
      memset(copy + in.n_weights, 0, sizeof(T) * static_cast<size_t>(prepared.weight_stride - in.n_weights));
      row[e] = copy;
    }
  }
  // radial mix, with radial given by pointers
  void multiply(const Prepared<T>& prepared, const T* const* radial, int n_edges, const T* mix, bool accumulate) const {
    T* to[kMaxEdges];
    for (int e = 0; e < n_edges; ++e) row[e] = to[e] = tile + e * prepared.weight_stride;
    multiply_rows<T>(radial, n_edges, prepared.in->rank, {mix, prepared.weight_stride}, to, prepared.weight_stride, accumulate);
  }
  void clear(const Prepared<T>& prepared, int n_edges) const {
    memset(tile, 0, sizeof(T) * static_cast<size_t>(n_edges * prepared.weight_stride));
    for (int e = 0; e < n_edges; ++e) row[e] = tile + e * prepared.weight_stride;
  }
};

// What of the current segment does not depend on the path.
template <class T>
struct EdgeTiles {
  const Prepared<T>* prepared;
  int l_max;
  Segment* segment;
  Lanes<T>* vectors;  // [3]
  Lanes<T>* sh;       // [dim_sh]
  const T** radial;   // of each edge
  const T** x;        // of each edge: the packed features of its source
  WeightRows<T> weight;

  static EdgeTiles layout(const Prepared<T>& prepared, Arena& arena) {
    EdgeTiles tiles;
    tiles.prepared = &prepared;
    tiles.l_max = static_cast<int>(largest_l_sh(*prepared.in));
    tiles.segment = arena.take<Segment>(1);
    tiles.vectors = arena.take<Lanes<T>>(3 * kMaxBlocks<T>);
    tiles.sh = arena.take<Lanes<T>>(prepared.in->dim_sh * kMaxBlocks<T>);
    tiles.radial = arena.take<const T*>(kMaxEdges);
    tiles.x = arena.take<const T*>(kMaxEdges);
    tiles.weight = WeightRows<T>::layout(prepared, arena);
    return tiles;
  }
  Rows<const T> rows(const T* data, int64_t width) const { return {data, width, prepared->in->n_edges}; }

  bool next(Cursor& cursor) {
    const ConvInput<T>& in = *prepared->in;
    if (!next_segment<T>(in, prepared->max_edges, cursor, *segment)) return false;
    if (in.given_sh) {
      gather<T>(rows(in.angular, in.dim_sh), segment->edge, n_blocks<T>(*segment), in.dim_sh, sh);
    } else {
      gather<T>(rows(in.angular, 3), segment->edge, n_blocks<T>(*segment), 3, vectors);
      harmonics_tile<T>(vectors, n_blocks<T>(*segment), l_max, sh);
    }
    for (int e = 0; e < segment->n_edges; ++e) x[e] = prepared->x + segment->source[e] * prepared->layout.width;
    if (in.rank == 0) {
      weight.point_to(*prepared, in.weight, *segment);
    } else {
      for (int e = 0; e < segment->n_edges; ++e) radial[e] = in.weight + segment->edge[e] * in.rank;
      weight.multiply(*prepared, radial, segment->n_edges, prepared->mix, false);
    }
    return true;
  }

  // Called once after each path: brings a part of what the next segment reads into the cache, while there is work on this one.
  // All at once would wait for memory.
  void prefetch(const Cursor& next, int64_t path) const {
    const ConvInput<T>& in = *prepared->in;
    for_each_slot(next, path, [&](int64_t slot) {
      prefetch_row(prepared->x + in.row_source[slot] * prepared->layout.width, prepared->layout.width);
    });
    if (in.rank == 0) prefetch_rows(next, path, in.weight, in.n_weights);
  }
  // The same part of an array with a row for each edge.
  void prefetch_rows(const Cursor& next, int64_t path, const T* data, int64_t width) const {
    const int64_t* const perm = prepared->in->perm;
    for_each_slot(next, path, [&](int64_t slot) { prefetch_row(data + (perm == nullptr ? slot : perm[slot]) * width, width); });
  }

 private:
  template <class Body>
  void for_each_slot(const Cursor& next, int64_t path, const Body& body) const {
    const int64_t n_paths = prepared->in->n_paths, n = prepared->max_edges, n_edges = prepared->in->n_edges;
    const int64_t stop = next.slot + n < n_edges ? next.slot + n : n_edges;
    const int64_t last = next.slot + n * (path + 1) / n_paths;
    for (int64_t slot = next.slot + n * path / n_paths; slot < last && slot < stop; ++slot) body(slot);
  }
};

template <class V, int d>
GLASS_INLINE void load_vectors(const Scalar<V>* p, V* v) {
  for (int i = 0; i < d; ++i) v[i] = load_vector<V>(p + i * kWidth<V>);
}
// matrix[pair][edge] of the coupling with the harmonics
template <class T, class Triple>
GLASS_INLINE void couple_with_harmonics(const Lanes<T>* sh, int n_blocks, T* matrix) {
  for (int b = 0; b < n_blocks; ++b) {
    Lanes<T> y[Triple::d_sh];
    for (int m = 0; m < Triple::d_sh; ++m) y[m] = sh[m * kMaxBlocks<T> + b];
    CoupledMatrix<Triple, SumOver::kSh>::template form<T>(y, reinterpret_cast<Lanes<T>*>(matrix) + b, kMaxBlocks<T>);
  }
}

// out[c][k] += in[k][c] for the first n channels c
template <class V, int d>
GLASS_INLINE void add_transposed(const V* in, int n, Scalar<V>* out) {
  constexpr int width = kWidth<V>;
  alignas(64) Scalar<V> lanes[d * width];
  for (int k = 0; k < d; ++k) store_vector<V>(lanes + k * width, in[k]);
  for (int c = 0; c < n; ++c) {
    for (int k = 0; k < d; ++k) out[c * d + k] += lanes[k * width + c];
  }
}

// The function for a path, by the width of its vectors of channels. The number of the triple (l_in, l_sh, l_out) in
// GLASSCONV_FOR_EACH_TRIPLE's order is its place in a table of functions.
#define GLASSCONV_TRIPLE_ENTRY(a, b, c) \
  if (path.l_in == a && path.l_sh == b && path.l_out == c) return &Kernel<V, Triple<a, b, c>>::run;

template <template <class, class> class Kernel, class V, class Work>
auto select_kernel(const ConvPath& path) -> void (*)(const Work&) {
  GLASSCONV_FOR_EACH_TRIPLE(GLASSCONV_TRIPLE_ENTRY)
  return nullptr;
}
#undef GLASSCONV_TRIPLE_ENTRY

template <template <class, class> class Kernel, class T, class Work>
auto select_kernel(const ConvPath& path, int width) {
  return width == kLanes<T> ? select_kernel<Kernel, Lanes<T>, Work>(path) : select_kernel<Kernel, HalfLanes<T>, Work>(path);
}

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
