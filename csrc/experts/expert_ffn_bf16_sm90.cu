#include "anabranch/experts/expert_ffn_sm90.cuh"

template void anabranch::expert_ffn_sm90(const ExpertFfn<bfloat16>&, int64_t, const ExpertFfnSm90Workspace<bfloat16>&,
                                         bfloat16*, bfloat16*, int, cudaStream_t);
