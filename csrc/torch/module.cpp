// The Python module glassconv._C. Importing it registers the operators (torch.ops.glassconv.*), which carry the tensors.
#include <pybind11/pybind11.h>

#include "../core/spherical_harmonics.h"
#include "../cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of glassconv.";
  m.attr("L_MAX") = glassconv::kMaxL;
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = __VERSION__;
        info["torch"] = GLASSCONV_TORCH_VERSION;
        info["isa"] = glassconv::active_isa();
        info["cuda"] = GLASSCONV_CUDA_VERSION;
        return info;
      },
      "How the module was built and which instruction set it uses on this machine.");
}
