#include "executor.h"
#include "spherical_harmonics_operators.h"

namespace glassconv {
namespace {

struct OnCpu {
  template <class T>
  static void run(const HarmonicsArrays<T>& arrays, at::Device) {
    TORCH_CHECK(spherical_harmonics_cpu<T>(arrays, at_executor()), "glassconv: not enough memory");
  }
};

}  // namespace
}  // namespace glassconv

TORCH_LIBRARY_IMPL(glassconv, CPU, m) { glassconv::HarmonicsOperators<glassconv::OnCpu>::add_to(m); }
