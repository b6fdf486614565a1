#include "library_cuda.h"

TORCH_LIBRARY_IMPL(glassconv, CUDA, m) {
  glassconv::register_conv_cuda(m);
  glassconv::register_neighbors_cuda(m);
  glassconv::register_spherical_harmonics_cuda(m);
}
