// Tensors of the convolution's derivatives, as every backend's binding makes them.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <array>
#include <tuple>

#include "checks.h"
#include "conv_arguments.h"

namespace glassconv {

using at::Tensor;

inline Tensor wanted_like(bool wanted, const Tensor& input) {
  return wanted && input.defined() ? at::empty_like(input) : Tensor();
}

template <class T>
T* write_pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Schemas have no undefined tensors: an empty one stands for "not wanted".
inline Tensor or_empty(const Tensor& tensor, const Tensor& like) {
  return tensor.defined() ? tensor : at::empty({0}, like.options());
}

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
  std::tuple<Tensor, Tensor, Tensor, Tensor> or_empty(const ConvArguments& a) const {
    return {glassconv::or_empty(x, a.x), glassconv::or_empty(angular, a.x), glassconv::or_empty(weight, a.x),
            glassconv::or_empty(mix, a.x)};
  }
};

inline Tensor checked_grad_out(const Tensor& grad_out, const ConvArguments& a) {
  check_like(grad_out, "grad_out", a.x, "x");
  check_shape(grad_out, "grad_out", {a.n_nodes(), a.dim_out});
  return grad_out.contiguous();
}

inline Tensor checked_cotangent(const OptionalTensor& v, const char* name, const Tensor& input) {
  if (!v.has_value() || !v->defined() || !input.defined()) return Tensor();
  check_like(*v, name, input, "x");
  check_shape(*v, name, input.sizes());
  return v->contiguous();
}

struct CotangentTensors {
  Tensor x, angular, weight, mix;

  CotangentTensors(const ConvArguments& a, const OptionalTensor& v_x, const OptionalTensor& v_angular,
                   const OptionalTensor& v_weight, const OptionalTensor& v_mix)
      : x(checked_cotangent(v_x, "v_x", a.x)),
        angular(checked_cotangent(v_angular, "v_angular", a.angular)),
        weight(checked_cotangent(v_weight, "v_weight", a.weight)),
        mix(checked_cotangent(v_mix, "v_mix", a.mix)) {}
  template <class T>
  ConvCotangents<T> pointers() const {
    return {read_pointer<T>(x), read_pointer<T>(angular), read_pointer<T>(weight), read_pointer<T>(mix)};
  }
};

}  // namespace glassconv
