#include "anabranch/skip/branch_backward_sm90.cuh"

template void anabranch::detail::branch_backward_sm90(const BranchProblem<half>&, const RowTiles&,
                                                      const BranchBackward<half>&, cudaStream_t);
template void anabranch::detail::branch_weights_backward_sm90(const BranchProblem<half>&, const ExpertFfn<half>&,
                                                              const FeatureRange&, const BranchBackward<half>&,
                                                              const ExpertFfnGradients<half>&, cudaStream_t);
