// From the operator's tensors to the core's ConvInput: checks, contiguity, paths. Shared by the backends' bindings.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../core/conv.h"

namespace glassconv {

using OptionalTensor = std::optional<at::Tensor>;

struct ConvArguments {
  at::Tensor x, angular, weight, mix;  // contiguous; mix undefined for explicit weights
  at::Tensor row_ptr, row_source, perm, transpose_ptr, transpose_slots;
  std::vector<ConvPath> paths;
  int64_t dim_in, dim_sh, dim_out, n_weights;
  bool given_sh;

  ConvArguments(const at::Tensor& x, const at::Tensor& angular, const at::Tensor& weight, const OptionalTensor& mix,
                const at::Tensor& row_ptr, const at::Tensor& row_source, const OptionalTensor& perm,
                const at::Tensor& transpose_ptr, const at::Tensor& transpose_slots, at::IntArrayRef spec, bool given_sh);

  int64_t n_nodes() const { return x.size(0); }
  int64_t n_edges() const { return angular.size(0); }
  template <class T>
  ConvInput<T> input() const;
  // Reads every index (CPU tensors only): a graph that points outside its arrays is an error, not a crash.
  void check_graph_indices() const;

 private:
  void read_paths(at::IntArrayRef spec);
  void check_tensors() const;
};

// `tensor` as T* for reading; null when undefined.
template <class T>
const T* read_pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
ConvInput<T> ConvArguments::input() const {
  ConvInput<T> in;
  in.n_nodes = n_nodes();
  in.n_edges = n_edges();
  in.dim_in = dim_in;
  in.dim_sh = dim_sh;
  in.dim_out = dim_out;
  in.n_weights = n_weights;
  in.rank = mix.defined() ? weight.size(1) : 0;
  in.paths = paths.data();
  in.n_paths = static_cast<int64_t>(paths.size());
  in.row_ptr = read_pointer<int64_t>(row_ptr);
  in.row_source = read_pointer<int64_t>(row_source);
  in.perm = read_pointer<int64_t>(perm);
  in.transpose_ptr = read_pointer<int64_t>(transpose_ptr);
  in.transpose_slots = read_pointer<int64_t>(transpose_slots);
  in.given_sh = given_sh;
  in.x = read_pointer<T>(x);
  in.angular = read_pointer<T>(angular);
  in.weight = read_pointer<T>(weight);
  in.mix = read_pointer<T>(mix);
  return in;
}

}  // namespace glassconv
