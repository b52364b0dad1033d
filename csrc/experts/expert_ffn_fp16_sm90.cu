#include "anabranch/experts/expert_ffn_sm90.cuh"

template void anabranch::expert_ffn_sm90(const ExpertFfn<half>&, int64_t, const ExpertFfnSm90Workspace<half>&, half*,
                                         half*, int, cudaStream_t);
