#include "anabranch/skip/branch_sm90.cuh"

template void anabranch::detail::branch_forward_sm90(const BranchProblem<bfloat16>&, const RowTiles&,
                                                     const ResidualStore<bfloat16>&, bfloat16*, bfloat16*,
                                                     cudaStream_t);
