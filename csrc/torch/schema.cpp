// The operators' schemas: what every backend implements. Backends register in files of their own.
//
// `spec` is glassconv.Paths.spec: [dim_in, dim_sh, dim_out, weight_numel] and for each path
// [l_in, l_sh, l_out, n_channels, in_offset, sh_offset, weight_offset, out_offset].
// `angular` holds vectors (n_edges, 3), or harmonics (n_edges, dim_sh) when given_sh; `weight` holds edge weights
// (n_edges, weight_numel), or radial features (n_edges, rank) when `mix` (rank, weight_numel) is given.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(glassconv, m) {
  m.def(
      "conv(Tensor x, Tensor angular, Tensor weight, Tensor? mix, Tensor row_ptr, Tensor row_source, Tensor? perm, "
      "Tensor transpose_ptr, Tensor transpose_slots, int[] spec, bool given_sh) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_backward(Tensor grad_out, Tensor x, Tensor angular, Tensor weight, Tensor? mix, Tensor row_ptr, "
      "Tensor row_source, Tensor? perm, Tensor transpose_ptr, Tensor transpose_slots, int[] spec, bool given_sh, "
      "bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_double_backward(Tensor? v_x, Tensor? v_angular, Tensor? v_weight, Tensor? v_mix, Tensor grad_out, Tensor x, "
      "Tensor angular, Tensor weight, Tensor? mix, Tensor row_ptr, Tensor row_source, Tensor? perm, "
      "Tensor transpose_ptr, Tensor transpose_slots, int[] spec, bool given_sh, bool[5] mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def("spherical_harmonics(Tensor vectors, int l_max) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("spherical_harmonics_backward(Tensor grad, Tensor vectors, int l_max) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("spherical_harmonics_double_backward(Tensor v, Tensor grad, Tensor vectors, int l_max) -> (Tensor, Tensor)",
        {at::Tag::pt2_compliant_tag});
}
