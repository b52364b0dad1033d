#include "anabranch/mixers/stream_products_sm90.cuh"

template void anabranch::detail::stream_products_sm90<anabranch::bfloat16>(const StreamProducts<bfloat16>&, bfloat16*,
                                                                           cudaStream_t);
