#include "anabranch/experts/expert_ffn_backward_sm90.cuh"

template void anabranch::expert_ffn_backward_sm90(const ExpertFfn<bfloat16>&, int64_t, const bfloat16*, const bfloat16*,
                                                  const ExpertFfnBackwardSm90Workspace<bfloat16>&,
                                                  const ExpertFfnGradients<bfloat16>&, int, cudaStream_t);
