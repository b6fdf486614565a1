// The kernels of conv_double_backward.cuh, which see, in float32: a file for each precision, since they take longest to compile.
#include "conv_double_backward.cuh"

namespace glassconv {

template size_t conv_double_backward_cuda_workspace<float>(const ConvInput<float>&, const ConvGradients<float>&);
template void conv_double_backward_cuda<float>(const ConvInput<float>&, const ConvCotangents<float>&,
                                               const ConvOutputGradient<float>&, const ConvGradients<float>&, void*, void*);

}  // namespace glassconv
