#include "anabranch/experts/grouped_mm_sm90.cuh"

template void anabranch::grouped_mm_sm90(const GroupedMm<half>&, int32_t*, int, cudaStream_t);
template void anabranch::grouped_mm_dw_sm90(const GroupedMmDw<half>&, int64_t, int, cudaStream_t);
