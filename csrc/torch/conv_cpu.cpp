// The convolution on the CPU: tensors in, core entry points, tensors out.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "checks.h"
#include "conv_arguments.h"
#include "executor.h"

namespace glassconv {
namespace {

using at::Tensor;

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

Tensor wanted_like(bool wanted, const Tensor& input) { return wanted && input.defined() ? at::empty_like(input) : Tensor(); }
template <class T>
T* write_pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}
// Schemas have no undefined tensors: an empty one stands for "not wanted".
Tensor or_empty(const Tensor& tensor, const Tensor& like) { return tensor.defined() ? tensor : at::empty({0}, like.options()); }

struct GradientTensors {
  Tensor x, angular, weight, mix;
  GradientTensors(const ConvArguments& a, const bool* wanted)
      : x(wanted_like(wanted[0], a.x)),
        angular(wanted_like(wanted[1], a.angular)),
        weight(wanted_like(wanted[2], a.weight)),
        mix(wanted_like(wanted[3], a.mix)) {}
  template <class T>
  ConvGradients<T> pointers() const {
    return {write_pointer<T>(x), write_pointer<T>(angular), write_pointer<T>(weight), write_pointer<T>(mix)};
  }
};

Tensor checked_grad_out(const Tensor& grad_out, const ConvArguments& a) {
  check_like(grad_out, "grad_out", a.x, "x");
  check_shape(grad_out, "grad_out", {a.n_nodes(), a.dim_out});
  return grad_out.contiguous();
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
  return {or_empty(grads.x, a.x), or_empty(grads.angular, a.x), or_empty(grads.weight, a.x), or_empty(grads.mix, a.x)};
}

Tensor checked_cotangent(const OptionalTensor& v, const char* name, const Tensor& input) {
  if (!v.has_value() || !v->defined() || !input.defined()) return Tensor();
  check_like(*v, name, input, "x");
  check_shape(*v, name, input.sizes());
  return v->contiguous();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_double_backward(
    const OptionalTensor& v_x, const OptionalTensor& v_angular, const OptionalTensor& v_weight, const OptionalTensor& v_mix,
    const Tensor& grad_out, const Tensor& x, const Tensor& angular, const Tensor& weight, const OptionalTensor& mix,
    const Tensor& row_ptr, const Tensor& row_source, const OptionalTensor& perm, const Tensor& transpose_ptr,
    const Tensor& transpose_slots, at::IntArrayRef spec, bool given_sh, std::array<bool, 5> mask) {
  const ConvArguments a(x, angular, weight, mix, row_ptr, row_source, perm, transpose_ptr, transpose_slots, spec, given_sh);
  a.check_graph_indices();
  const Tensor g = checked_grad_out(grad_out, a);
  const Tensor vx = checked_cotangent(v_x, "v_x", a.x), va = checked_cotangent(v_angular, "v_angular", a.angular);
  const Tensor vw = checked_cotangent(v_weight, "v_weight", a.weight), vm = checked_cotangent(v_mix, "v_mix", a.mix);
  const Tensor grad_grad_out = wanted_like(mask[0], g);
  const GradientTensors grads(a, mask.data() + 1);
  AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "glassconv::conv_double_backward", [&] {
    const ConvCotangents<scalar_t> v{read_pointer<scalar_t>(vx), read_pointer<scalar_t>(va), read_pointer<scalar_t>(vw),
                                     read_pointer<scalar_t>(vm)};
    const bool done =
        conv_double_backward_cpu<scalar_t>(a.input<scalar_t>(), v, g.const_data_ptr<scalar_t>(),
                                           write_pointer<scalar_t>(grad_grad_out), grads.pointers<scalar_t>(), at_executor());
    TORCH_CHECK(done, kNoMemory);
  });
  return {or_empty(grad_grad_out, a.x), or_empty(grads.x, a.x), or_empty(grads.angular, a.x), or_empty(grads.weight, a.x),
          or_empty(grads.mix, a.x)};
}

}  // namespace
}  // namespace glassconv

TORCH_LIBRARY_IMPL(glassconv, CPU, m) {
  m.impl("conv", &glassconv::conv);
  m.impl("conv_backward", &glassconv::conv_backward);
  m.impl("conv_double_backward", &glassconv::conv_double_backward);
}
