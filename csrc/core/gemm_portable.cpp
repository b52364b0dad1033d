#include "anabranch/core/gemm_lanes_portable.hpp"
#include "anabranch/core/gemm_stored.hpp"

namespace anabranch {

void gemm_portable(const detail::GemmArguments<float>& arguments) {
  detail::gemm_tile<portable::FloatLanes>(arguments);
}
void gemm_portable(const detail::GemmArguments<double>& arguments) {
  detail::gemm_tile<portable::DoubleLanes>(arguments);
}
void gemm_portable(const detail::GemmArguments<bfloat16>& arguments) {
  detail::gemm_tile<portable::FloatLanes>(arguments);
}
void gemm_portable(const detail::GemmArguments<half>& arguments) { detail::gemm_tile<portable::FloatLanes>(arguments); }

}  // namespace anabranch
