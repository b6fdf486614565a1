// The CUDA implementations of the operators, each file's own; registered by library_cuda.cpp, and by the emulated backend of the tests.
#pragma once

#include <torch/library.h>

namespace glassconv {

void register_conv_cuda(torch::Library& m);
void register_neighbors_cuda(torch::Library& m);
void register_spherical_harmonics_cuda(torch::Library& m);

}  // namespace glassconv
