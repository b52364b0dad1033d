// The library's namespace in torch, its thread pool, and what it reports about the machine it runs on.
#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/core/peak.hpp"
#include "torch.hpp"

namespace anabranch {
namespace {

// Workers are torch's own threads: torch.set_num_threads governs us too, and no second pool competes for the cores.
const bool uses_torch_threads = [] {
  parallel_backend() = {[] { return static_cast<int>(torch::stable::get_num_threads()); },
                        [](int num_workers, void (*body)(int, void*), void* context) {
                          torch::stable::parallel_for(0, num_workers, 1, [&](int64_t begin, int64_t end) {
                            for (int64_t worker = begin; worker < end; ++worker)
                              body(static_cast<int>(worker), context);
                          });
                        }};
  return true;
}();

int64_t cpu_isa_op() { return static_cast<int64_t>(cpu_isa()); }
int64_t detected_cpu_isa_op() { return static_cast<int64_t>(detected_cpu_isa()); }

void set_cpu_isa_op(int64_t isa) {
  check(isa >= 0 && isa <= static_cast<int64_t>(detected_cpu_isa()), "set_cpu_isa: isa is ", isa, ", must be 0 to ",
        static_cast<int64_t>(detected_cpu_isa()), " on this CPU");
  set_cpu_isa(static_cast<CpuIsa>(isa));
}

double peak_flops_op(bool bf16, double seconds) {
  check(seconds > 0 && seconds <= 60, "peak_flops: seconds is ", seconds, ", must be above 0 and at most 60");
  return peak_flops(bf16, parallel_backend().num_threads(), seconds);
}

double read_bandwidth_op(int64_t bytes, int64_t repeats) {
  check(bytes >= (int64_t{1} << 20), "read_bandwidth: bytes is ", bytes,
        ", must be at least 1048576; use several times the last cache's size");
  check(repeats >= 1 && repeats <= 1000, "read_bandwidth: repeats is ", repeats, ", must be 1 to 1000");
  return read_bandwidth(static_cast<std::size_t>(bytes), parallel_backend().num_threads(), static_cast<int>(repeats));
}

double random_line_rate_op(int64_t bytes, int64_t lines, int64_t repeats) {
  check(bytes >= (int64_t{1} << 20) && bytes <= (int64_t{1} << 38), "random_line_rate: bytes is ", bytes,
        ", must be 1048576 to 2^38; use several times the last cache's size");
  check(lines >= 1, "random_line_rate: lines is ", lines, ", must be positive");
  check(repeats >= 1 && repeats <= 1000, "random_line_rate: repeats is ", repeats, ", must be 1 to 1000");
  return random_line_rate(static_cast<std::size_t>(bytes), lines, parallel_backend().num_threads(),
                          static_cast<int>(repeats));
}

}  // namespace

STABLE_TORCH_LIBRARY(anabranch, m) {
  m.def("cpu_isa() -> int");
  m.def("detected_cpu_isa() -> int");
  m.def("set_cpu_isa(int isa) -> ()");
  m.def("peak_flops(bool bfloat16, float seconds) -> float");
  m.def("read_bandwidth(int bytes, int repeats) -> float");
  m.def("random_line_rate(int bytes, int lines, int repeats) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa_op));
  m.impl("detected_cpu_isa", TORCH_BOX(&detected_cpu_isa_op));
  m.impl("set_cpu_isa", TORCH_BOX(&set_cpu_isa_op));
  m.impl("peak_flops", TORCH_BOX(&peak_flops_op));
  m.impl("read_bandwidth", TORCH_BOX(&read_bandwidth_op));
  m.impl("random_line_rate", TORCH_BOX(&random_line_rate_op));
}

}  // namespace anabranch
