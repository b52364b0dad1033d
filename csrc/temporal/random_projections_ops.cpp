// Random projections in torch: schema and CPU kernel.
#include "anabranch/temporal/random_projections_cpu.hpp"
#include "temporal/random_projections_checks.hpp"

namespace anabranch {
namespace {

void random_projections_update(const Tensor& table, const Tensor& last_time, const Tensor& now, const Tensor& src,
                               const Tensor& dst, const Tensor& time, double decay) {
  constexpr const char* op = "random_projections_update";
  const RandomProjectionsArguments in(op, table, last_time, now, src, dst, time, decay);
  in.check_values(op);
  dispatch_floating(table.scalar_type(), [&]<class T>(Type<T>) { random_projections_update_cpu(in.problem<T>()); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def(
      "random_projections_update(Tensor(a!) table, Tensor(b!) last_time, Tensor now, Tensor src, Tensor dst, Tensor "
      "time, float decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("random_projections_update", TORCH_BOX(&random_projections_update));
}

}  // namespace anabranch
