// The kernels of conv_double_backward.cuh, which see, in float64: a file for each precision, since they take longest to compile.
#include "conv_double_backward.cuh"

namespace glassconv {

template size_t conv_double_backward_cuda_workspace<double>(const ConvInput<double>&, const ConvGradients<double>&);
template void conv_double_backward_cuda<double>(const ConvInput<double>&, const ConvCotangents<double>&,
                                                const ConvOutputGradient<double>&, const ConvGradients<double>&, void*, void*);

}  // namespace glassconv
