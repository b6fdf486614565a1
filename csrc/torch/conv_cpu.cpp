// The convolution on the CPU: tensors in, core entry points, tensors out.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "conv_tensors.h"
#include "executor.h"

namespace glassconv {
namespace {

constexpr const char* kNoMemory = "glassconv: not enough memory for the convolution's workspace";

Tensor conv(const Tensor& x, const Tensor& angular, const Tensor& weight, const OptionalTensor& mix, const Tensor& row_ptr,
            const Tensor& row_source, const OptionalTensor& perm, const Tensor& transpose_ptr, const Tensor& transpose_slots,
            at::IntArrayRef spec, bool given_sh) {
  const ConvArguments a(x, angular, weight, mix, row_ptr, row_source, perm, transpose_ptr, transpose_slots, spec, given_sh);
  a.check_graph_indices();
  Tensor out = at::empty({a.n_nodes(), a.dim_out}, a.x.options());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "glassconv::conv", [&] {
    TORCH_CHECK(conv_forward_cpu<scalar_t>(a.input<scalar_t>(), out.mutable_data_ptr<scalar_t>(), at_executor()), kNoMemory);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_backward(const Tensor& grad_out, const Tensor& x, const Tensor& angular,
                                                         const Tensor& weight, const OptionalTensor& mix, const Tensor& row_ptr,
                                                         const Tensor& row_source, const OptionalTensor& perm,
                                                         const Tensor& transpose_ptr, const Tensor& transpose_slots,
                                                         at::IntArrayRef spec, bool given_sh, std::array<bool, 4> mask) {
  const ConvArguments a(x, angular, weight, mix, row_ptr, row_source, perm, transpose_ptr, transpose_slots, spec, given_sh);
  a.check_graph_indices();
  const Tensor g = checked_grad_out(grad_out, a);
  const GradientTensors grads(a, mask.data());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "glassconv::conv_backward", [&] {
    const bool done = conv_backward_cpu<scalar_t>(a.input<scalar_t>(), g.const_data_ptr<scalar_t>(), grads.pointers<scalar_t>(),
                                                  at_executor());
    TORCH_CHECK(done, kNoMemory);
  });
  return grads.or_empty(a);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_double_backward(
    const OptionalTensor& v_x, const OptionalTensor& v_angular, const OptionalTensor& v_weight, const OptionalTensor& v_mix,
    const Tensor& grad_out, const Tensor& x, const Tensor& angular, const Tensor& weight, const OptionalTensor& mix,
    const Tensor& row_ptr, const Tensor& row_source, const OptionalTensor& perm, const Tensor& transpose_ptr,
    const Tensor& transpose_slots, at::IntArrayRef spec, bool given_sh, std::array<bool, 5> mask) {
  const ConvArguments a(x, angular, weight, mix, row_ptr, row_source, perm, transpose_ptr, transpose_slots, spec, given_sh);
  a.check_graph_indices();
  const Tensor g = checked_grad_out(grad_out, a);
  const CotangentTensors v(a, v_x, v_angular, v_weight, v_mix);
  const Tensor grad_grad_out = wanted_like(mask[0], g);
  const GradientTensors grads(a, mask.data() + 1);
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "glassconv::conv_double_backward", [&] {
    const bool done =
        conv_double_backward_cpu<scalar_t>(a.input<scalar_t>(), v.pointers<scalar_t>(), g.const_data_ptr<scalar_t>(),
                                           write_pointer<scalar_t>(grad_grad_out), grads.pointers<scalar_t>(), at_executor());
    TORCH_CHECK(done, kNoMemory);
  });
  return std::tuple_cat(std::make_tuple(or_empty(grad_grad_out, a.x)), grads.or_empty(a));
}

}  // namespace
}  // namespace glassconv

TORCH_LIBRARY_IMPL(glassconv, CPU, m) {
  m.impl("conv", &glassconv::conv);
  m.impl("conv_backward", &glassconv::conv_backward);
  m.impl("conv_double_backward", &glassconv::conv_double_backward);
}
