// The convolution's public face in C++: raw pointers and sizes, no torch, no CUDA runtime.
//
//   out_i[p, c, m_out] = sum_{edges e into i} w_e[p, c] sum_{m_in, m_sh} C_p[m_in, m_sh, m_out] x_{source(e)}[c, m_in] Y_e[m_sh]
//
// for each path p, with w either given per edge or of low rank, w_e[p, c] = sum_h radial_e[h] mix[h][p, c].
// All entry points are deterministic: the same input gives the same bits for any number of threads.
#pragma once

#include "platform.h"

namespace glassconv {

// One path: where its input block, its harmonics, its weights and its output block begin, in elements of a row.
// Blocks have e3nn's layout: element (c, m) at offset + c * (2 l + 1) + m.
struct ConvPath {
  int64_t l_in, l_sh, l_out, n_channels;
  int64_t in_offset, sh_offset, weight_offset, out_offset;
};

// The inputs. Arrays are contiguous; per-edge arrays are in the order of the caller's edges.
template <class T>
struct ConvInput {
  int64_t n_nodes = 0, n_edges = 0;
  int64_t dim_in = 0, dim_sh = 0, dim_out = 0, n_weights = 0;
  int64_t rank = 0;  // columns of `radial`; 0: explicit weights
  const ConvPath* paths = nullptr;
  int64_t n_paths = 0;
  const int64_t* row_ptr = nullptr;          // (n_nodes + 1) slots of the edges into each node
  const int64_t* row_source = nullptr;       // (n_edges) source node of each slot
  const int64_t* perm = nullptr;             // (n_edges) edge of each slot; null: slot = edge
  const int64_t* transpose_ptr = nullptr;    // (n_nodes + 1)
  const int64_t* transpose_slots = nullptr;  // (n_edges) slots of the edges out of each node
  bool given_sh = false;
  const T* x = nullptr;        // (n_nodes, dim_in)
  const T* angular = nullptr;  // given_sh ? (n_edges, dim_sh) harmonics : (n_edges, 3) vectors
  const T* weight = nullptr;   // rank ? (n_edges, rank) radial : (n_edges, n_weights)
  const T* mix = nullptr;      // rank ? (rank, n_weights) : null

  GLASS_HD int64_t angular_width() const { return given_sh ? dim_sh : 3; }
  GLASS_HD int64_t weight_width() const { return rank > 0 ? rank : n_weights; }
};

// Gradients with respect to the inputs, each shaped like its input; null where not wanted.
template <class T>
struct ConvGradients {
  T* x = nullptr;
  T* angular = nullptr;
  T* weight = nullptr;
  T* mix = nullptr;
};

// Cotangents of the four gradients above; null stands for zero.
template <class T>
struct ConvCotangents {
  const T* x = nullptr;
  const T* angular = nullptr;
  const T* weight = nullptr;
  const T* mix = nullptr;
};

// Both return false when working memory could not be had; outputs are then undefined.
template <class T>
bool conv_forward_cpu(const ConvInput<T>& input, T* out, const Executor& executor);

template <class T>
bool conv_backward_cpu(const ConvInput<T>& input, const T* grad_out, const ConvGradients<T>& gradients,
                       const Executor& executor);

// Gradients of <cotangents, conv_backward(grad_out, input)> with respect to grad_out (null: not wanted) and the inputs.
template <class T>
bool conv_double_backward_cpu(const ConvInput<T>& input, const ConvCotangents<T>& cotangents, const T* grad_out,
                              T* grad_grad_out, const ConvGradients<T>& gradients, const Executor& executor);

// The same on a GPU: arrays, except `paths`, lie in device memory, and the work is queued on `stream` (a cudaStream_t) of the
// current device. `workspace` is device memory of the size that the function of the same name gives; it is needed until the work
// is done. No synchronization; deterministic, on every device alike. Throw std::invalid_argument for rows of 2^31 elements or
// more, std::runtime_error for errors of the CUDA runtime.
template <class T>
void conv_forward_cuda(const ConvInput<T>& input, T* out, void* stream);

template <class T>
size_t conv_backward_cuda_workspace(const ConvInput<T>& input, const ConvGradients<T>& gradients);
template <class T>
void conv_backward_cuda(const ConvInput<T>& input, const T* grad_out, const ConvGradients<T>& gradients, void* workspace,
                        void* stream);

// grad_out with its own gradient, of the second derivatives.
template <class T>
struct ConvOutputGradient {
  const T* grad_out = nullptr;
  T* grad_grad_out = nullptr;  // null: not wanted
};
template <class T>
size_t conv_double_backward_cuda_workspace(const ConvInput<T>& input, const ConvGradients<T>& gradients);
template <class T>
void conv_double_backward_cuda(const ConvInput<T>& input, const ConvCotangents<T>& cotangents,
                               const ConvOutputGradient<T>& output, const ConvGradients<T>& gradients, void* workspace,
                               void* stream);

}  // namespace glassconv
