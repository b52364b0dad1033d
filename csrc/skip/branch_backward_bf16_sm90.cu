#include "anabranch/skip/branch_backward_sm90.cuh"

template void anabranch::detail::branch_backward_sm90(const BranchProblem<bfloat16>&, const RowTiles&,
                                                      const BranchBackward<bfloat16>&, cudaStream_t);
template void anabranch::detail::branch_weights_backward_sm90(const BranchProblem<bfloat16>&,
                                                              const ExpertFfn<bfloat16>&, const FeatureRange&,
                                                              const BranchBackward<bfloat16>&,
                                                              const ExpertFfnGradients<bfloat16>&, cudaStream_t);
