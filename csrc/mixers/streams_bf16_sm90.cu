// The mixers room's kernels on tensor cores.
#include "anabranch/mixers/stream_dweight_sm90.cuh"
#include "anabranch/mixers/stream_products_sm90.cuh"

namespace anabranch::detail {

template void stream_products_sm90<bfloat16>(const StreamProducts<bfloat16>&, bfloat16*, cudaStream_t);
template void stream_dweight_sm90<bfloat16>(const StreamWeightGradient<bfloat16>&, bfloat16*, cudaStream_t);

}  // namespace anabranch::detail
