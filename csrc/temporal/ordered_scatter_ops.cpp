// Ordered scatters in torch: schemas and CPU kernels.
#include "anabranch/temporal/ordered_scatter_cpu.hpp"
#include "temporal/ordered_scatter_checks.hpp"

namespace anabranch {
namespace {

void ordered_scatter_add(const Tensor& table, const Tensor& index, const Tensor& values,
                         std::optional<Tensor> weights) {
  constexpr const char* op = "ordered_scatter_add_";
  ScatterArguments in(op, table, index, values, std::move(weights));
  in.make_contiguous(op);
  in.check_values(op);
  dispatch_summed(op, table, [&]<class T>(Type<T>) { ordered_scatter_add_cpu(in.add<T>()); });
}

void ordered_scatter(const Tensor& table, const Tensor& index, const Tensor& values) {
  constexpr const char* op = "ordered_scatter_";
  ScatterArguments in(op, table, index, values);
  in.make_contiguous(op);
  in.check_values(op);
  ordered_scatter_cpu(in.set());
}

Tensor latest_of_node(const Tensor& nodes, const Tensor& time, std::optional<Tensor> event_id) {
  const NodeEventArguments in("latest_of_node", nodes, time, std::move(event_id));
  const Tensor latest = in.result();
  latest_of_node_cpu(in.events(), data_if_any<bool>(latest));
  return latest;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("ordered_scatter_add(Tensor(a!) table, Tensor index, Tensor values, Tensor? weights) -> ()");
  m.def("ordered_scatter(Tensor(a!) table, Tensor index, Tensor values) -> ()");
  m.def("latest_of_node(Tensor nodes, Tensor time, Tensor? event_id) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("ordered_scatter_add", TORCH_BOX(&ordered_scatter_add));
  m.impl("ordered_scatter", TORCH_BOX(&ordered_scatter));
  m.impl("latest_of_node", TORCH_BOX(&latest_of_node));
}

}  // namespace anabranch
