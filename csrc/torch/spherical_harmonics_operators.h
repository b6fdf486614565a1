// The operators of the spherical harmonics for any backend: Backend::run<T>(arrays, device) fills the arrays.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../core/spherical_harmonics.h"
#include "../core/spherical_harmonics_op.h"
#include "checks.h"

namespace glassconv {

using at::Tensor;

inline void check_arguments(const Tensor& vectors, int64_t l_max) {
  TORCH_CHECK(vectors.dim() == 2 && vectors.size(1) == 3, "glassconv: `vectors`: expected shape (n, 3), got ", vectors.sizes());
  TORCH_CHECK(vectors.scalar_type() == at::kFloat || vectors.scalar_type() == at::kDouble,
              "glassconv: `vectors`: expected dtype float32 or float64, got ", vectors.scalar_type());
  TORCH_CHECK(l_max >= 0 && l_max <= kMaxL, "glassconv: `l_max`: expected 0 to ", kMaxL, ", got ", l_max);
}

inline Tensor new_harmonics(const Tensor& vectors, int64_t l_max) {
  return at::empty({vectors.size(0), n_harmonics(static_cast<int>(l_max))}, vectors.options());
}

inline Tensor checked_grad(const Tensor& grad, const Tensor& vectors, int64_t l_max) {
  check_like(grad, "grad", vectors, "vectors");
  check_shape(grad, "grad", {vectors.size(0), n_harmonics(static_cast<int>(l_max))});
  return grad.contiguous();
}

struct HarmonicsTensors {
  Tensor vectors, along, grad_sh, sh, grad_vectors;
};

template <class Backend>
struct HarmonicsOperators {
  static void run(const HarmonicsTensors& t, int64_t l_max) {
    AT_DISPATCH_FLOATING_TYPES(t.vectors.scalar_type(), "glassconv::spherical_harmonics", [&] {
      HarmonicsArrays<scalar_t> a;
      a.n = t.vectors.size(0);
      a.l_max = static_cast<int>(l_max);
      a.vectors = t.vectors.const_data_ptr<scalar_t>();
      if (t.along.defined()) a.along = t.along.const_data_ptr<scalar_t>();
      if (t.grad_sh.defined()) a.grad_sh = t.grad_sh.const_data_ptr<scalar_t>();
      if (t.sh.defined()) a.sh = t.sh.mutable_data_ptr<scalar_t>();
      if (t.grad_vectors.defined()) a.grad_vectors = t.grad_vectors.mutable_data_ptr<scalar_t>();
      Backend::template run<scalar_t>(a, t.vectors.device());
    });
  }

  static Tensor forward(const Tensor& vectors, int64_t l_max) {
    check_arguments(vectors, l_max);
    HarmonicsTensors t{vectors.contiguous(), {}, {}, new_harmonics(vectors, l_max), {}};
    run(t, l_max);
    return t.sh;
  }

  static Tensor backward(const Tensor& grad, const Tensor& vectors, int64_t l_max) {
    check_arguments(vectors, l_max);
    HarmonicsTensors t{vectors.contiguous(), {}, checked_grad(grad, vectors, l_max), {}, {}};
    t.grad_vectors = at::empty_like(t.vectors);
    run(t, l_max);
    return t.grad_vectors;
  }

  static std::tuple<Tensor, Tensor> double_backward(const Tensor& v, const Tensor& grad, const Tensor& vectors, int64_t l_max) {
    check_arguments(vectors, l_max);
    check_like(v, "v", vectors, "vectors");
    check_shape(v, "v", vectors.sizes());
    HarmonicsTensors t{
        vectors.contiguous(), v.contiguous(), checked_grad(grad, vectors, l_max), new_harmonics(vectors, l_max), {}};
    t.grad_vectors = at::empty_like(t.vectors);
    run(t, l_max);
    return {t.sh, t.grad_vectors};
  }

  static void add_to(torch::Library& m) {
    m.impl("spherical_harmonics", &forward);
    m.impl("spherical_harmonics_backward", &backward);
    m.impl("spherical_harmonics_double_backward", &double_backward);
  }
};

}  // namespace glassconv
