#include "conv_arguments.h"

#include <algorithm>

#include "../core/spherical_harmonics.h"
#include "checks.h"

namespace glassconv {
namespace {

constexpr int64_t kHeaderInts = 4, kPathInts = 8;

at::Tensor optional_contiguous(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? tensor->contiguous() : at::Tensor();
}

bool fits(int64_t offset, int64_t size, int64_t total) { return offset >= 0 && size >= 0 && offset <= total - size; }

void check_pointers(const at::Tensor& ptr, const char* name, int64_t n_edges) {
  const int64_t* const p = ptr.const_data_ptr<int64_t>();
  const int64_t n = ptr.size(0) - 1;
  TORCH_CHECK(p[0] == 0 && p[n] == n_edges && std::is_sorted(p, p + n + 1), "glassconv: `", name,
              "`: expected values rising from 0 to n_edges = ", n_edges, ", got another sequence");
}

void check_range(const at::Tensor& index, const char* name, int64_t size) {
  if (!index.defined()) return;
  const int64_t* const p = index.const_data_ptr<int64_t>();
  // one unsigned comparison for both ends; OR instead of an early exit lets the loop vectorize
  bool outside = false;
  for (int64_t i = 0; i < index.size(0); ++i) outside |= static_cast<uint64_t>(p[i]) >= static_cast<uint64_t>(size);
  TORCH_CHECK(!outside, "glassconv: `", name, "`: expected values from 0 to ", size - 1, ", got one outside");
}

}  // namespace

void ConvArguments::check_graph_indices() const {
  check_pointers(row_ptr, "row_ptr", n_edges());
  check_pointers(transpose_ptr, "transpose_ptr", n_edges());
  check_range(row_source, "row_source", n_nodes());
  check_range(perm, "perm", n_edges());
  check_range(transpose_slots, "transpose_slots", n_edges());
}

ConvArguments::ConvArguments(const at::Tensor& x_, const at::Tensor& angular_, const at::Tensor& weight_,
                             const OptionalTensor& mix_, const at::Tensor& row_ptr_, const at::Tensor& row_source_,
                             const OptionalTensor& perm_, const at::Tensor& transpose_ptr_, const at::Tensor& transpose_slots_,
                             at::IntArrayRef spec, bool given_sh_)
    : x(x_.contiguous()),
      angular(angular_.contiguous()),
      weight(weight_.contiguous()),
      mix(optional_contiguous(mix_)),
      row_ptr(row_ptr_.contiguous()),
      row_source(row_source_.contiguous()),
      perm(optional_contiguous(perm_)),
      transpose_ptr(transpose_ptr_.contiguous()),
      transpose_slots(transpose_slots_.contiguous()),
      given_sh(given_sh_) {
  read_paths(spec);
  check_tensors();
}

void ConvArguments::read_paths(at::IntArrayRef spec) {
  const int64_t n_ints = static_cast<int64_t>(spec.size());
  TORCH_CHECK(n_ints >= kHeaderInts && (n_ints - kHeaderInts) % kPathInts == 0, "glassconv: `spec`: expected ", kHeaderInts,
              " + ", kPathInts, " n integers, got ", n_ints);
  dim_in = spec[0], dim_sh = spec[1], dim_out = spec[2], n_weights = spec[3];
  int64_t l_max = 0;
  for (int64_t at = kHeaderInts; at < n_ints; at += kPathInts) {
    const auto s = spec.slice(at, kPathInts);
    ConvPath path{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]};
    TORCH_CHECK(path.l_in >= 0 && path.l_in <= kMaxL && path.l_sh >= 0 && path.l_sh <= kMaxL && path.l_out <= kMaxL &&
                    path.l_out >= std::abs(path.l_in - path.l_sh) && path.l_out <= path.l_in + path.l_sh,
                "glassconv: `spec`: expected l <= ", kMaxL, " and |l_in - l_sh| <= l_out <= l_in + l_sh, got (", path.l_in,
                ", ", path.l_sh, ", ", path.l_out, ")");
    const bool inside = path.n_channels >= 0 && fits(path.in_offset, path.n_channels * (2 * path.l_in + 1), dim_in) &&
                        fits(path.sh_offset, 2 * path.l_sh + 1, dim_sh) &&
                        fits(path.weight_offset, path.n_channels, n_weights) &&
                        fits(path.out_offset, path.n_channels * (2 * path.l_out + 1), dim_out);
    TORCH_CHECK(inside, "glassconv: `spec`: path ", (at - kHeaderInts) / kPathInts, " reaches outside its arrays");
    if (!given_sh) path.sh_offset = path.l_sh * path.l_sh;  // harmonics computed from vectors hold every l
    l_max = std::max(l_max, path.l_sh);
    if (path.n_channels > 0) paths.push_back(path);
  }
  if (!given_sh) dim_sh = n_harmonics(static_cast<int>(l_max));
  // the schedules work through one input block after the other
  std::stable_sort(paths.begin(), paths.end(), [](const ConvPath& a, const ConvPath& b) { return a.in_offset < b.in_offset; });
  for (size_t i = 1; i < paths.size(); ++i) {
    const ConvPath &a = paths[i - 1], &b = paths[i];
    TORCH_CHECK(a.in_offset != b.in_offset || (a.l_in == b.l_in && a.n_channels == b.n_channels),
                "glassconv: `spec`: two paths read different blocks at the same offset ", a.in_offset);
  }
}

void ConvArguments::check_tensors() const {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
              "glassconv: `x`: expected dtype float32 or float64, got ", x.scalar_type());
  TORCH_CHECK(x.dim() == 2 && x.size(1) == dim_in, "glassconv: `x`: expected shape (n_nodes, ", dim_in, "), got ", x.sizes());
  TORCH_CHECK(angular.dim() == 2, "glassconv: `angular`: expected shape (n_edges, ", given_sh ? dim_sh : 3, "), got ",
              angular.sizes());
  check_shape(angular, "angular", {n_edges(), given_sh ? dim_sh : 3});
  TORCH_CHECK(weight.dim() == 2, "glassconv: `weight`: expected 2 dimensions, got ", weight.dim());
  if (mix.defined()) {
    TORCH_CHECK(weight.size(1) > 0, "glassconv: `radial`: expected at least one column, got shape ", weight.sizes());
    check_shape(weight, "radial", {n_edges(), weight.size(1)});
    check_shape(mix, "mix", {weight.size(1), n_weights});
    check_like(mix, "mix", x, "x");
  } else {
    check_shape(weight, "edge_weight", {n_edges(), n_weights});
  }
  check_like(angular, "angular", x, "x");
  check_like(weight, "weight", x, "x");
  check_index(row_ptr, "row_ptr", n_nodes() + 1);
  check_index(row_source, "row_source", n_edges());
  check_index(transpose_ptr, "transpose_ptr", n_nodes() + 1);
  check_index(transpose_slots, "transpose_slots", n_edges());
  if (perm.defined()) check_index(perm, "perm", n_edges());
  for (const at::Tensor& index : {row_ptr, row_source, perm, transpose_ptr, transpose_slots}) {
    TORCH_CHECK(!index.defined() || index.device() == x.device(), "glassconv: graph: expected the device of `x` (", x.device(),
                "), got ", index.device());
  }
}

}  // namespace glassconv
