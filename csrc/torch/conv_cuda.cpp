// The convolution on a GPU: tensors in, core entry points, tensors out. Indices are not read, which would wait for the device.
#include <ATen/Dispatch.h>

#include "conv_tensors.h"
#include "cuda_stream.h"
#include "library_cuda.h"

namespace glassconv {
namespace {

Tensor workspace_of(size_t bytes, const ConvArguments& a) {
  return at::empty({static_cast<int64_t>(bytes)}, a.x.options().dtype(at::kByte));
}

Tensor conv(const Tensor& x, const Tensor& angular, const Tensor& weight, const OptionalTensor& mix, const Tensor& row_ptr,
            const Tensor& row_source, const OptionalTensor& perm, const Tensor& transpose_ptr, const Tensor& transpose_slots,
            at::IntArrayRef spec, bool given_sh) {
  const ConvArguments a(x, angular, weight, mix, row_ptr, row_source, perm, transpose_ptr, transpose_slots, spec, given_sh);
  const OnDevice device(a.x.device());
  const Tensor out = at::empty({a.n_nodes(), a.dim_out}, a.x.options());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "glassconv::conv", [&] {
    conv_forward_cuda<scalar_t>(a.input<scalar_t>(), out.mutable_data_ptr<scalar_t>(), device.stream());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_backward(const Tensor& grad_out, const Tensor& x, const Tensor& angular,
                                                         const Tensor& weight, const OptionalTensor& mix, const Tensor& row_ptr,
                                                         const Tensor& row_source, const OptionalTensor& perm,
                                                         const Tensor& transpose_ptr, const Tensor& transpose_slots,
                                                         at::IntArrayRef spec, bool given_sh, std::array<bool, 4> mask) {
  const ConvArguments a(x, angular, weight, mix, row_ptr, row_source, perm, transpose_ptr, transpose_slots, spec, given_sh);
  const OnDevice device(a.x.device());
  const Tensor g = checked_grad_out(grad_out, a);
  const GradientTensors grads(a, mask.data());
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "glassconv::conv_backward", [&] {
    const ConvInput<scalar_t> input = a.input<scalar_t>();
    const ConvGradients<scalar_t> wanted = grads.pointers<scalar_t>();
    const Tensor workspace = workspace_of(conv_backward_cuda_workspace(input, wanted), a);
    conv_backward_cuda<scalar_t>(input, g.const_data_ptr<scalar_t>(), wanted, workspace.mutable_data_ptr(), device.stream());
  });
  return grads.or_empty(a);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_double_backward(
    const OptionalTensor& v_x, const OptionalTensor& v_angular, const OptionalTensor& v_weight, const OptionalTensor& v_mix,
    const Tensor& grad_out, const Tensor& x, const Tensor& angular, const Tensor& weight, const OptionalTensor& mix,
    const Tensor& row_ptr, const Tensor& row_source, const OptionalTensor& perm, const Tensor& transpose_ptr,
    const Tensor& transpose_slots, at::IntArrayRef spec, bool given_sh, std::array<bool, 5> mask) {
  const ConvArguments a(x, angular, weight, mix, row_ptr, row_source, perm, transpose_ptr, transpose_slots, spec, given_sh);
  const OnDevice device(a.x.device());
  const Tensor g = checked_grad_out(grad_out, a);
  const CotangentTensors v(a, v_x, v_angular, v_weight, v_mix);
  const Tensor grad_grad_out = wanted_like(mask[0], g);
  const GradientTensors grads(a, mask.data() + 1);
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "glassconv::conv_double_backward", [&] {
    const ConvInput<scalar_t> input = a.input<scalar_t>();
    const ConvGradients<scalar_t> wanted = grads.pointers<scalar_t>();
    const Tensor workspace = workspace_of(conv_double_backward_cuda_workspace(input, wanted), a);
    conv_double_backward_cuda<scalar_t>(input, v.pointers<scalar_t>(),
                                        {g.const_data_ptr<scalar_t>(), write_pointer<scalar_t>(grad_grad_out)}, wanted,
                                        workspace.mutable_data_ptr(), device.stream());
  });
  return std::tuple_cat(std::make_tuple(or_empty(grad_grad_out, a.x)), grads.or_empty(a));
}

}  // namespace

void register_conv_cuda(torch::Library& m) {
  m.impl("conv", &conv);
  m.impl("conv_backward", &conv_backward);
  m.impl("conv_double_backward", &conv_double_backward);
}

}  // namespace glassconv
