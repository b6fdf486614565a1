// Edges in SIMD lanes: how a stretch of rows becomes tiles that the contraction bodies can work on.
//
// A *block* is one register's worth of edges, all of the same row (receiver); a *segment* is up to kMaxBlocks blocks, of one or
// several rows. Every per-edge quantity of a segment is a tile [column][block] of Lanes<T>, transposed on load. Channels are
// therefore never in lanes: any multiplicity costs what its channels cost, and the Clebsch-Gordan matrices are shared by all of
// them. Lanes without an edge hold zeros (as long as all inputs are finite) and are never stored.
#pragma once

#include "../core/conv.h"
#include "../core/tensor_product.h"
#include "simd.h"

namespace glassconv {
namespace GLASSCONV_ISA {

inline constexpr int kMaxBlocks = 12;     // 12 blocks of 16 floats: four rows of a glass (about 41 neighbors each)
inline constexpr int kChannelChunk = 16;  // channels of one input block that are worked on together
inline constexpr int kMaxDim = 2 * kMaxL + 1;

template <class T>
struct Segment {
  int n_blocks = 0, n_rows = 0;
  int64_t row[kMaxBlocks];
  int first_block[kMaxBlocks + 1];       // of each row
  int64_t slot[kMaxBlocks * kLanes<T>];  // -1: no edge in this lane
  int64_t edge[kMaxBlocks * kLanes<T>];
  int64_t source[kMaxBlocks * kLanes<T>];
};

// Walks over the edges of the rows [row, row_end) in segments. A row that does not fit goes on in the next segment.
struct Cursor {
  int64_t row, row_end, slot;
};

template <class T>
bool next_segment(const ConvInput<T>& in, Cursor& cursor, Segment<T>& segment) {
  segment.n_blocks = segment.n_rows = 0;
  while (cursor.row < cursor.row_end && segment.n_blocks < kMaxBlocks) {
    const int64_t row_stop = in.row_ptr[cursor.row + 1];
    if (cursor.slot < row_stop) {
      segment.row[segment.n_rows] = cursor.row;
      segment.first_block[segment.n_rows++] = segment.n_blocks;
    }
    for (; cursor.slot < row_stop && segment.n_blocks < kMaxBlocks; ++segment.n_blocks) {
      for (int lane = segment.n_blocks * kLanes<T>; lane < (segment.n_blocks + 1) * kLanes<T>; ++lane) {
        const bool present = cursor.slot < row_stop;
        const int64_t slot = present ? cursor.slot++ : -1;
        segment.slot[lane] = slot;
        segment.edge[lane] = !present ? -1 : in.perm != nullptr ? in.perm[slot] : slot;
        segment.source[lane] = present ? in.row_source[slot] : -1;
      }
    }
    if (cursor.slot == row_stop) ++cursor.row;
  }
  segment.first_block[segment.n_rows] = segment.n_blocks;
  return segment.n_blocks > 0;
}

// A matrix in memory, one row per node, edge or slot.
template <class T>
struct Rows {
  T* data;
  int64_t width;  // elements in a row
  int64_t n_rows;
};

// tile[col][block] <- rows[index[lane]][first_col + col], zero where index is -1.
template <class T>
void gather(const Rows<const T>& rows, const int64_t* index, int n_blocks, int64_t first_col, int64_t n_cols, Lanes<T>* tile) {
  constexpr int width = kLanes<T>;
  const T* const end = rows.data + rows.n_rows * rows.width;
  for (int block = 0; block < n_blocks; ++block) {
    const int64_t* const at = index + block * width;
    for (int64_t col = 0; col < n_cols; col += width) {
      Lanes<T> v[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) {
        const T* const p = rows.data + at[i] * rows.width + first_col + col;
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
      for (int i = 0; i < n; ++i) tile[(col + i) * kMaxBlocks + block] = v[i];
    }
  }
}

// rows[index[lane]][first_col + col] <- tile[col][block], lanes with index -1 left out.
template <class T>
void scatter(const Lanes<T>* tile, const int64_t* index, int n_blocks, int64_t first_col, int64_t n_cols, const Rows<T>& rows) {
  constexpr int width = kLanes<T>;
  for (int block = 0; block < n_blocks; ++block) {
    const int64_t* const at = index + block * width;
    for (int64_t col = 0; col < n_cols; col += width) {
      const int n = n_cols - col < width ? static_cast<int>(n_cols - col) : width;
      Lanes<T> v[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) v[i] = i < n ? tile[(col + i) * kMaxBlocks + block] : Lanes<T>{};
      transpose<T>(v);
      for (int i = 0; i < width; ++i) {
        if (at[i] < 0) continue;
        T* const p = rows.data + at[i] * rows.width + first_col + col;
        if (n == width) {
          store<T>(p, v[i]);
        } else {
          store_first<T>(p, v[i], n);
        }
      }
    }
  }
}

// A scalar matrix that multiplies tiles: element (m, k) at data[m * row_stride + k * col_stride].
template <class T>
struct ScalarMatrix {
  const T* data;
  int64_t row_stride, col_stride;
};

template <class T, int n_m, int n_b>
GLASS_INLINE void multiply_patch(const ScalarMatrix<T>& a, int64_t n_k, const Lanes<T>* in, Lanes<T>* out, bool accumulate) {
  Lanes<T> sum[n_m][n_b] = {};
  for (int64_t k = 0; k < n_k; ++k) {
    const T* const scalars = a.data + k * a.col_stride;
#pragma GCC unroll 4
    for (int m = 0; m < n_m; ++m) {
#pragma GCC unroll 4
      for (int b = 0; b < n_b; ++b) sum[m][b] += in[k * kMaxBlocks + b] * scalars[m * a.row_stride];
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < n_m; ++m) {
#pragma GCC unroll 4
    for (int b = 0; b < n_b; ++b) {
      // sums of sums: the gradient of radial adds up thousands of weights, too many for one running sum in float
      out[m * kMaxBlocks + b] = accumulate ? out[m * kMaxBlocks + b] + sum[m][b] : sum[m][b];
    }
  }
}

// out[m][block] (+)= sum_k a[m][k] in[k][block]
template <class T>
void multiply(const ScalarMatrix<T>& a, int64_t n_m, int64_t n_k, int n_blocks, const Lanes<T>* in, Lanes<T>* out,
              bool accumulate) {
  constexpr int n_b = GLASSCONV_LANE_BYTES == 64 ? 4 : 2;  // 16 sums in 32 registers, 8 in 16
  for (int64_t m = 0; m < n_m; m += 4) {
    const ScalarMatrix<T> rows{a.data + m * a.row_stride, a.row_stride, a.col_stride};
    Lanes<T>* const to = out + m * kMaxBlocks;
    int b = 0;
    if (m + 4 <= n_m) {
      for (; b + n_b <= n_blocks; b += n_b) multiply_patch<T, 4, n_b>(rows, n_k, in + b, to + b, accumulate);
      for (; b < n_blocks; ++b) multiply_patch<T, 4, 1>(rows, n_k, in + b, to + b, accumulate);
    } else {
      for (int64_t i = 0; m + i < n_m; ++i) {
        const ScalarMatrix<T> one{rows.data + i * a.row_stride, a.row_stride, a.col_stride};
        for (b = 0; b + n_b <= n_blocks; b += n_b) {
          multiply_patch<T, 1, n_b>(one, n_k, in + b, to + i * kMaxBlocks + b, accumulate);
        }
        for (; b < n_blocks; ++b) multiply_patch<T, 1, 1>(one, n_k, in + b, to + i * kMaxBlocks + b, accumulate);
      }
    }
  }
}

// out[h][c] += sum over blocks and lanes of left[h][block] right[c][block]; c < n_cols <= kChannelChunk, out rows `stride` apart.
template <class T>
void add_outer(const Lanes<T>* left, int64_t n_rows, const Lanes<T>* right, int n_cols, int n_blocks, T* out, int64_t stride) {
  alignas(64) Lanes<T> sums[kChannelChunk + kLanes<T>];
  for (int64_t h = 0; h < n_rows; ++h) {
    const Lanes<T>* const row = left + h * kMaxBlocks;
    int c = 0;
    for (; c + 4 <= n_cols; c += 4) {
      const Lanes<T>* const cols = right + c * kMaxBlocks;
      Lanes<T> sum[4] = {};
      for (int b = 0; b < n_blocks; ++b) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[i] += row[b] * cols[i * kMaxBlocks + b];
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[c + i] = sum[i];
    }
    for (; c < n_cols; ++c) {
      Lanes<T> sum = {};
      for (int b = 0; b < n_blocks; ++b) sum += row[b] * right[c * kMaxBlocks + b];
      sums[c] = sum;
    }
    add_lane_sums<T>(sums, n_cols, out + h * stride);
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
