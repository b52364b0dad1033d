#include "anabranch/skip/branch_sm90.cuh"

template void anabranch::detail::branch_forward_sm90(const BranchProblem<half>&, const RowTiles&,
                                                     const ResidualStore<half>&, half*, half*, cudaStream_t);
