// Argument checks shared by the bindings: the message names the argument, what was expected and what was got.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace glassconv {

inline void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, "glassconv: `", name, "`: expected shape ", expected, ", got ", tensor.sizes());
}

inline void check_like(const at::Tensor& tensor, const char* name, const at::Tensor& other, const char* other_name) {
  TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), "glassconv: `", name, "`: expected the dtype of `", other_name,
              "` (", other.scalar_type(), "), got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == other.device(), "glassconv: `", name, "`: expected the device of `", other_name, "` (",
              other.device(), "), got ", tensor.device());
}

inline void check_index(const at::Tensor& tensor, const char* name, int64_t size) {
  TORCH_CHECK(tensor.scalar_type() == at::kLong, "glassconv: `", name, "`: expected dtype int64, got ", tensor.scalar_type());
  check_shape(tensor, name, {size});
}

}  // namespace glassconv
