// The kernels of coefficients and matrices, all that ops.cu declares extern: eight mixers for every number of streams.
#include "anabranch/mixers/coefficients_backward.cuh"

namespace anabranch {

template void coefficients_cuda<float>(const StreamProjection<float>&, const ProductParts<float>&, int64_t, float*,
                                       const float*, int64_t, float*, cudaStream_t);
template void coefficients_cuda<double>(const StreamProjection<double>&, const ProductParts<double>&, int64_t, double*,
                                        const double*, int64_t, double*, cudaStream_t);
template void coefficients_backward_cuda<float>(const StreamProjection<float>&, const CoefficientUpstream<float>&,
                                                int64_t, int64_t, const float*, const float*, int64_t,
                                                const CoefficientGradients<float>&, cudaStream_t);
template void coefficients_backward_cuda<double>(const StreamProjection<double>&, const CoefficientUpstream<double>&,
                                                 int64_t, int64_t, const double*, const double*, int64_t,
                                                 const CoefficientGradients<double>&, cudaStream_t);

}  // namespace anabranch
