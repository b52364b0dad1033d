#include "anabranch/experts/expert_ffn_backward_sm90.cuh"

template void anabranch::expert_ffn_backward_sm90(const ExpertFfn<half>&, int64_t, const half*, const half*,
                                                  const ExpertFfnBackwardSm90Workspace<half>&,
                                                  const ExpertFfnGradients<half>&, int, cudaStream_t);
