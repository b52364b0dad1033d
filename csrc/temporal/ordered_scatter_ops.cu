// The ordered scatters' CUDA kernels in torch. Schemas are in ordered_scatter_ops.cpp. The host reads no value: an
// index out of range is passed over.
#include "anabranch/temporal/ordered_scatter.cuh"
#include "cuda.hpp"
#include "temporal/ordered_scatter_checks.hpp"

namespace anabranch {
namespace {

void ordered_scatter_add(const Tensor& table, const Tensor& index, const Tensor& values,
                         std::optional<Tensor> weights) {
  constexpr const char* op = "ordered_scatter_add_";
  ScatterArguments in(op, table, index, values, std::move(weights));
  const OnDeviceOf device(table);
  in.make_contiguous(op);
  dispatch_summed(op, table, [&]<class T>(Type<T>) { ordered_scatter_add_cuda<T>(in.add<T>(), device.stream); });
}

void ordered_scatter(const Tensor& table, const Tensor& index, const Tensor& values) {
  constexpr const char* op = "ordered_scatter_";
  ScatterArguments in(op, table, index, values);
  const OnDeviceOf device(table);
  in.make_contiguous(op);
  ordered_scatter_cuda(in.set(), device.stream);
}

Tensor latest_of_node(const Tensor& nodes, const Tensor& time, std::optional<Tensor> event_id) {
  const OnDeviceOf device(nodes);
  const NodeEventArguments in("latest_of_node", nodes, time, std::move(event_id));
  const Tensor latest = in.result();
  latest_of_node_cuda(in.events(), data_if_any<bool>(latest), device.stream);
  return latest;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("ordered_scatter_add", TORCH_BOX(&ordered_scatter_add));
  m.impl("ordered_scatter", TORCH_BOX(&ordered_scatter));
  m.impl("latest_of_node", TORCH_BOX(&latest_of_node));
}

}  // namespace anabranch
