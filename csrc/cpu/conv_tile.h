// How the data of a stretch of edges lies while the kernels work on it.
//
// A *segment* is up to kMaxEdges consecutive slots, of one or several rows (receivers). What belongs to the geometry has edges in
// SIMD lanes: a tile [column][block] of Lanes<T>, which read as scalars is [column][edge]. What belongs to features has channels
// in lanes: *packed* rows, in which every block of irreps is [chunk of channels][component][channel], padded with zeros to whole
// vectors. So a kernel multiplies vectors of channels by the scalars of an edge, and no lane is idle that the multiplicity fills.
#pragma once

#include "../core/conv.h"
#include "../core/tensor_product.h"
#include "simd.h"

namespace glassconv {
namespace GLASSCONV_ISA {

inline constexpr int kMaxEdges = 64;
template <class T>
inline constexpr int kMaxBlocks = kMaxEdges / kLanes<T>;
inline constexpr int kMaxDim = 2 * kMaxL + 1;

template <class T>
constexpr int64_t padded(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

struct Segment {
  int n_edges = 0, n_rows = 0;
  int64_t first_slot = 0;
  int64_t row[kMaxEdges];
  int first_edge[kMaxEdges + 1];  // of each row
  int64_t edge[kMaxEdges];        // -1: no edge in this lane
  int64_t source[kMaxEdges];
};

// Walks over the edges of the rows [row, row_end) in segments. A row that does not fit goes on in the next segment.
struct Cursor {
  int64_t row, row_end, slot;
};

template <class T>
bool next_segment(const ConvInput<T>& in, int max_edges, Cursor& cursor, Segment& segment) {
  segment.n_edges = segment.n_rows = 0;
  segment.first_slot = cursor.slot;
  while (cursor.row < cursor.row_end && segment.n_edges < max_edges) {
    const int64_t row_stop = in.row_ptr[cursor.row + 1];
    if (cursor.slot < row_stop) {
      segment.row[segment.n_rows] = cursor.row;
      segment.first_edge[segment.n_rows++] = segment.n_edges;
    }
    for (; cursor.slot < row_stop && segment.n_edges < max_edges; ++cursor.slot) {
      segment.edge[segment.n_edges] = in.perm != nullptr ? in.perm[cursor.slot] : cursor.slot;
      segment.source[segment.n_edges++] = in.row_source[cursor.slot];
    }
    if (cursor.slot == row_stop) ++cursor.row;
  }
  segment.first_edge[segment.n_rows] = segment.n_edges;
  for (int lane = segment.n_edges; lane % kLanes<T> != 0; ++lane) segment.edge[lane] = -1;
  return segment.n_edges > 0;
}

template <class T>
int n_blocks(const Segment& segment) {
  return (segment.n_edges + kLanes<T> - 1) / kLanes<T>;
}

// A matrix in memory, one row per node or edge.
template <class T>
struct Rows {
  T* data;
  int64_t width;  // elements in a row
  int64_t n_rows;
};

// tile[col][block] <- rows[index[lane]][col], zero where index is -1.
template <class T>
void gather(const Rows<const T>& rows, const int64_t* index, int n_blocks, int64_t n_cols, Lanes<T>* tile) {
  constexpr int width = kLanes<T>;
  const T* const end = rows.data + rows.n_rows * rows.width;
  for (int block = 0; block < n_blocks; ++block) {
    const int64_t* const at = index + block * width;
    for (int64_t col = 0; col < n_cols; col += width) {
      Lanes<T> v[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) {
        const T* const p = rows.data + at[i] * rows.width + col;
        if (at[i] < 0) {
          v[i] = Lanes<T>{};
        } else if (end - p >= width) {
          v[i] = load<T>(p);  // may read past the columns that are wanted, never past the array
        } else {
          v[i] = Lanes<T>{};
          for (int k = 0; k < end - p; ++k) v[i][k] = p[k];
        }
      }
      transpose<T>(v);
      const int n = n_cols - col < width ? static_cast<int>(n_cols - col) : width;
      for (int i = 0; i < n; ++i) tile[(col + i) * kMaxBlocks<T> + block] = v[i];
    }
  }
}

// rows[index[lane]][col] <- tile[col][block], lanes with index -1 left out.
template <class T>
void scatter(const Lanes<T>* tile, const int64_t* index, int n_blocks, int64_t n_cols, const Rows<T>& rows) {
  constexpr int width = kLanes<T>;
  for (int block = 0; block < n_blocks; ++block) {
    const int64_t* const at = index + block * width;
    for (int64_t col = 0; col < n_cols; col += width) {
      const int n = n_cols - col < width ? static_cast<int>(n_cols - col) : width;
      Lanes<T> v[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) v[i] = i < n ? tile[(col + i) * kMaxBlocks<T> + block] : Lanes<T>{};
      transpose<T>(v);
      for (int i = 0; i < width; ++i) {
        if (at[i] < 0) continue;
        T* const p = rows.data + at[i] * rows.width + col;
        if (n == width) {
          store<T>(p, v[i]);
        } else {
          store_first<Lanes<T>>(p, v[i], n);
        }
      }
    }
  }
}

// A matrix with rows padded to whole vectors.
template <class T>
struct PaddedMatrix {
  const T* data;
  int64_t stride;
};

// out[r][first_col + j] (+)= sum_k a[r][k] b[k][first_col + j], k in [first_k, first_k + n_k), for a patch of n_rows x n_vectors.
template <class T, int n_rows, int n_vectors>
GLASS_INLINE void multiply_patch(const T* const* a, int64_t first_k, int64_t n_k, const PaddedMatrix<T>& b, T* const* out,
                                 int64_t first_col, int64_t n_cols, bool accumulate) {
  constexpr int width = kLanes<T>;
  Lanes<T> sum[n_rows][n_vectors] = {};
  for (int64_t k = first_k; k < first_k + n_k; ++k) {
    Lanes<T> right[n_vectors];
#pragma GCC unroll 4
    for (int v = 0; v < n_vectors; ++v) right[v] = load<T>(b.data + k * b.stride + first_col + v * width);
#pragma GCC unroll 8
    for (int r = 0; r < n_rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < n_vectors; ++v) sum[r][v] += right[v] * a[r][k];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < n_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < n_vectors; ++v) {
      const int64_t col = first_col + v * width, left = n_cols - col;
      T* const p = out[r] + col;
      if (left >= width) {
        store<T>(p, accumulate ? load<T>(p) + sum[r][v] : sum[r][v]);
      } else {
        alignas(64) T lane[width];
        store<T>(lane, sum[r][v]);
        for (int64_t i = 0; i < left; ++i) p[i] = accumulate ? p[i] + lane[i] : lane[i];
      }
    }
  }
}

template <class T, int n_vectors>
void multiply_columns(const T* const* a, int n, int64_t first_k, int64_t n_k, const PaddedMatrix<T>& b, T* const* out,
                      int64_t first_col, int64_t n_cols, bool accumulate) {
  constexpr int n_r = n_vectors == 1 ? 8 : 4;  // 16 sums in 32 registers, 8 in 16
  int r = 0;
  for (; r + n_r <= n; r += n_r) {
    multiply_patch<T, n_r, n_vectors>(a + r, first_k, n_k, b, out + r, first_col, n_cols, accumulate);
  }
  for (; r < n; ++r) multiply_patch<T, 1, n_vectors>(a + r, first_k, n_k, b, out + r, first_col, n_cols, accumulate);
}

// out[r][col] (+)= sum_k a[r][k] b[k][col] for n rows given by pointers; only the n_cols columns of `out` are touched.
template <class T>
void multiply_rows(const T* const* a, int n, int64_t n_k, const PaddedMatrix<T>& b, T* const* out, int64_t n_cols,
                   bool accumulate) {
  constexpr int64_t n_v = GLASSCONV_LANE_BYTES == 64 ? 4 : 2;
  // sums of sums: the gradient of radial adds up thousands of weights, too many for one running sum in float
  constexpr int64_t kTerms = 128;
  for (int64_t k = 0; k < n_k; k += kTerms) {
    const int64_t terms = n_k - k < kTerms ? n_k - k : kTerms;
    const bool add = accumulate || k > 0;
    for (int64_t col = 0, step = 0; col < n_cols; col += step * kLanes<T>) {
      const int64_t left = (n_cols - col + kLanes<T> - 1) / kLanes<T>;
      step = left >= n_v ? n_v : left >= 2 ? 2 : 1;
      if (step == 4) {
        multiply_columns<T, 4>(a, n, k, terms, b, out, col, n_cols, add);
      } else if (step == 2) {
        multiply_columns<T, 2>(a, n, k, terms, b, out, col, n_cols, add);
      } else {
        multiply_columns<T, 1>(a, n, k, terms, b, out, col, n_cols, add);
      }
    }
  }
}

template <class T, int n_rows, int n_vectors>
GLASS_INLINE void add_outer_patch(const T* const* a, const T* const* b, int n, int64_t row, int64_t col, T* out,
                                  int64_t stride) {
  constexpr int width = kLanes<T>;
  Lanes<T> sum[n_rows][n_vectors] = {};
  for (int k = 0; k < n; ++k) {
    Lanes<T> right[n_vectors];
#pragma GCC unroll 4
    for (int v = 0; v < n_vectors; ++v) right[v] = load<T>(b[k] + col + v * width);
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < n_vectors; ++v) sum[r][v] += right[v] * a[k][row + r];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < n_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < n_vectors; ++v) {
      T* const p = out + (row + r) * stride + col + v * width;
      store<T>(p, load<T>(p) + sum[r][v]);
    }
  }
}

// out[row][col] += sum_k a[k][row] b[k][col] over n rows given by pointers. `out` and the rows of b are padded to whole vectors.
template <class T>
void add_outer(const T* const* a, const T* const* b, int n, int64_t n_rows, int64_t n_cols, T* out, int64_t stride) {
  constexpr int64_t n_v = GLASSCONV_LANE_BYTES == 64 ? 4 : 2;
  for (int64_t col = 0; col < n_cols;) {
    const bool wide = (n_cols - col + kLanes<T> - 1) / kLanes<T> >= n_v;
    for (int64_t row = 0; row < n_rows;) {
      const bool tall = row + 4 <= n_rows;
      if (wide && tall) {
        add_outer_patch<T, 4, n_v>(a, b, n, row, col, out, stride);
      } else if (wide) {
        add_outer_patch<T, 1, n_v>(a, b, n, row, col, out, stride);
      } else if (tall) {
        add_outer_patch<T, 4, 1>(a, b, n, row, col, out, stride);
      } else {
        add_outer_patch<T, 1, 1>(a, b, n, row, col, out, stride);
      }
      row += tall ? 4 : 1;
    }
    col += (wide ? n_v : 1) * kLanes<T>;
  }
}

// Hands out 64-byte aligned arrays from one allocation. A first pass without memory measures.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class E>
  E* take(int64_t n) {
    E* const array = base_ == nullptr ? nullptr : reinterpret_cast<E*>(base_ + used_);
    used_ += (static_cast<size_t>(n) * sizeof(E) + 63) / 64 * 64;
    return array;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
