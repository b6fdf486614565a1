#include "cuda_stream.h"
#include "library_cuda.h"
#include "spherical_harmonics_operators.h"

namespace glassconv {
namespace {

struct OnGpu {
  template <class T>
  static void run(const HarmonicsArrays<T>& arrays, at::Device device) {
    const OnDevice on(device);
    spherical_harmonics_cuda<T>(arrays, on.stream());
  }
};

}  // namespace

void register_spherical_harmonics_cuda(torch::Library& m) { HarmonicsOperators<OnGpu>::add_to(m); }

}  // namespace glassconv
