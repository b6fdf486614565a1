// The Python module _emulated: the CUDA operators of glassconv, unmodified, as its CPU operators.
#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>

#include "../../csrc/torch/library_cuda.h"
#include "runtime.h"

namespace py = pybind11;

namespace emulated {

std::map<std::string, std::string> compiled_sources();  // written by build.py

namespace {

std::unique_ptr<torch::Library> library;

// Says nothing: torch warns of every operator that is given another implementation, which is the purpose here.
struct Silent : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

void deactivate() { library.reset(); }

void activate() {
  Silent silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  deactivate();
  restart_random();
  library = std::make_unique<torch::Library>(torch::Library::IMPL, "glassconv", c10::DispatchKey::CPU, __FILE__, __LINE__);
  glassconv::register_conv_cuda(*library);
  glassconv::register_neighbors_cuda(*library);
  glassconv::register_spherical_harmonics_cuda(*library);
}

}  // namespace
}  // namespace emulated

PYBIND11_MODULE(_emulated, m) {
  m.doc() = "The CUDA operators of glassconv on the CPU, one fiber for each CUDA thread.";
  m.def("activate", &emulated::activate,
        "Make torch.ops.glassconv.* run the CUDA sources on CPU tensors, from a fresh random state.");
  m.def("deactivate", &emulated::deactivate, "Give torch.ops.glassconv.* its CPU implementations back.");
  m.def("sources", &emulated::compiled_sources, "The files this was compiled from, and the SHA-256 of what was in them.");
}
