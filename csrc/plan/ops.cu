// The plan room's CUDA kernels in torch. Schemas are in ops.cpp; the host reads no value and waits for nothing.
#include "anabranch/plan/build.cuh"
#include "anabranch/plan/rows.cuh"
#include "anabranch/plan/segment.cuh"
#include "cuda.hpp"
#include "plan/checks.hpp"

namespace anabranch {
namespace {

using Built = std::tuple<Tensor, Tensor, Tensor>;

Tensor int_scratch(const Tensor& like, int64_t size) { return empty_on(like, {size}, ScalarType::Int); }

Built from_top_k(const Tensor& indices_in, int64_t num_groups) {
  check_from_top_k("from_top_k", indices_in, num_groups);
  const OnDeviceOf device(indices_in);
  const Tensor indices = as_contiguous(indices_in);
  const int64_t n = indices.numel();
  const PlanTensors plan(indices, num_groups, n);
  const Tensor scratch = int_scratch(indices, plan_from_rows_scratch(n, num_groups, n));
  const auto build = [&]<class Index>(Type<Index>) {
    plan_from_top_k_cuda(data<Index>(indices), indices.size(0), indices.size(1), plan.arrays(),
                         mutable_data<int32_t>(scratch), device.stream);
  };
  indices.scalar_type() == ScalarType::Long ? build(Type<int64_t>{}) : build(Type<int32_t>{});
  return plan.tuple();
}

Built from_mask(const Tensor& mask_in, int64_t capacity) {
  check_from_mask("from_mask", mask_in, capacity);
  const OnDeviceOf device(mask_in);
  const Tensor mask = as_contiguous(mask_in);
  const PlanTensors plan(mask, mask.size(1), capacity);
  const Tensor scratch = int_scratch(mask, plan_from_rows_scratch(mask.numel(), mask.size(1), capacity));
  plan_from_mask_cuda(data<bool>(mask), mask.size(0), plan.arrays(), mutable_data<int32_t>(scratch), device.stream);
  return plan.tuple();
}

Built from_pairs(const Tensor& item_ids, const Tensor& group_ids, int64_t num_items, int64_t num_groups) {
  check_from_pairs("from_pairs", item_ids, group_ids, num_items, num_groups);
  const OnDeviceOf device(item_ids);
  const int64_t n = item_ids.size(0);
  const PlanTensors plan(item_ids, num_groups, n);
  const Tensor scratch = int_scratch(item_ids, plan_from_pairs_scratch(n, num_items, num_groups, n));
  plan_from_pairs_cuda(data<int32_t>(item_ids), data<int32_t>(group_ids), n, num_items, plan.arrays(),
                       mutable_data<int32_t>(scratch), device.stream);
  return plan.tuple();
}

Built transpose(const Tensor& group_offsets, const Tensor& item_ids, int64_t num_items) {
  check_transpose("transpose", group_offsets, item_ids, num_items);
  const OnDeviceOf device(item_ids);
  const int64_t capacity = item_ids.size(0);
  const PlanTensors by_item(item_ids, num_items, capacity);
  const Tensor scratch = int_scratch(item_ids, transpose_plan_scratch(capacity, num_items));
  transpose_plan_cuda(plan_arrays(group_offsets, item_ids), by_item.transposed_arrays(), mutable_data<int32_t>(scratch),
                      device.stream);
  return by_item.tuple();
}

Tensor select(const Tensor& values_in, const Tensor& source_ids) {
  check_select("select", values_in, source_ids);
  const OnDeviceOf device(values_in);
  const Tensor values = as_contiguous(values_in);
  const int64_t capacity = source_ids.size(0);
  const Tensor out = empty_on(values, {capacity}, values.scalar_type());
  dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    select_cuda(data<T>(values), data<int32_t>(source_ids), values.numel(), capacity, mutable_data<T>(out),
                device.stream);
  });
  return out;
}

Tensor select_backward(const Tensor& grad_in, const Tensor& source_ids, int64_t num_values) {
  check_select_backward("select_backward", grad_in, source_ids, num_values);
  const OnDeviceOf device(grad_in);
  const Tensor grad = as_contiguous(grad_in);
  const Tensor out = zeros_on(grad, {num_values}, grad.scalar_type());
  dispatch_floating(grad.scalar_type(), [&]<class T>(Type<T>) {
    select_backward_cuda(data<T>(grad), data<int32_t>(source_ids), num_values, source_ids.size(0), mutable_data<T>(out),
                         device.stream);
  });
  return out;
}

Tensor gather(const Tensor& x_in, const std::optional<Tensor>& weights_in, const Tensor& group_offsets,
              const Tensor& item_ids, const Tensor&, const Tensor&) {  // the transpose is for the backward
  check_gather("gather", x_in, weights_in, group_offsets, item_ids);
  const OnDeviceOf device(x_in);
  const Tensor x = as_contiguous(x_in);
  const auto weights = as_contiguous(weights_in);
  const int64_t capacity = item_ids.size(0), width = x.size(1);
  const int32_t* num_entries = data<int32_t>(group_offsets) + group_offsets.size(0) - 1;
  const Tensor out = empty_on(x, {capacity, width}, x.scalar_type());
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    gather_cuda(data<T>(x), data<accumulate_t<T>>(weights), data<int32_t>(item_ids), num_entries, x.size(0), capacity,
                width, mutable_data<T>(out), device.stream);
  });
  return out;
}

Tensor combine(const Tensor& values_in, const std::optional<Tensor>& weights_in, const Tensor& item_offsets,
               const Tensor& entry_ids, const Tensor&, const Tensor&) {  // the plan itself is for the backward
  check_combine("combine", values_in, weights_in, item_offsets, entry_ids);
  const OnDeviceOf device(values_in);
  const Tensor values = as_contiguous(values_in);
  const auto weights = as_contiguous(weights_in);
  const int64_t num_items = item_offsets.size(0) - 1, width = values.size(1);
  const Tensor out = empty_on(values, {num_items, width}, values.scalar_type());
  dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    combine_cuda(data<T>(values), data<accumulate_t<T>>(weights), data<int32_t>(item_offsets), data<int32_t>(entry_ids),
                 num_items, values.size(0), width, mutable_data<T>(out), device.stream);
  });
  return out;
}

Tensor row_dot(const Tensor& values_in, const Tensor& x_in, const Tensor& group_offsets, const Tensor& item_ids,
               const Tensor&, const Tensor&) {  // the transpose is for the backward
  check_row_dot("row_dot", values_in, x_in, group_offsets, item_ids);
  const OnDeviceOf device(values_in);
  const Tensor values = as_contiguous(values_in), x = as_contiguous(x_in);
  const int64_t capacity = item_ids.size(0);
  const int32_t* num_entries = data<int32_t>(group_offsets) + group_offsets.size(0) - 1;
  const Tensor out = empty_on(x, {capacity}, accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    row_dot_cuda(data<T>(values), data<T>(x), data<int32_t>(item_ids), num_entries, x.size(0), capacity, x.size(1),
                 mutable_data<accumulate_t<T>>(out), device.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor> segment_reduce(const Tensor& values_in, const Tensor& group_offsets, int64_t reduction) {
  check_segment_reduce("segment_reduce", values_in, group_offsets, reduction);
  const OnDeviceOf device(values_in);
  const Tensor values = as_contiguous(values_in);
  const int64_t num_groups = group_offsets.size(0) - 1, width = values.size(1);
  const bool selects = detail::selects(static_cast<Reduction>(reduction));
  const Tensor out = empty_on(values, {num_groups, width}, values.scalar_type());
  const Tensor arg = empty_on(values, {selects ? num_groups : 0, width}, ScalarType::Int);
  dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    segment_reduce_cuda(data<T>(values), data<int32_t>(group_offsets), num_groups, values.size(0), width,
                        static_cast<Reduction>(reduction), mutable_data<T>(out),
                        selects ? mutable_data<int32_t>(arg) : nullptr, device.stream);
  });
  return {out, arg};
}

Tensor segment_reduce_backward(const Tensor& dout_in, const Tensor& arg, const Tensor& group_offsets, int64_t capacity,
                               int64_t reduction) {
  check_segment_reduce_backward("segment_reduce_backward", dout_in, arg, group_offsets, capacity, reduction);
  const OnDeviceOf device(dout_in);
  const Tensor dout = as_contiguous(dout_in);
  const int64_t num_groups = group_offsets.size(0) - 1, width = dout.size(1);
  const Tensor dvalues = empty_on(dout, {capacity, width}, dout.scalar_type());
  dispatch_floating(dout.scalar_type(), [&]<class T>(Type<T>) {
    segment_reduce_backward_cuda(data<T>(dout), data<int32_t>(arg), data<int32_t>(group_offsets), num_groups, capacity,
                                 width, static_cast<Reduction>(reduction), mutable_data<T>(dvalues), device.stream);
  });
  return dvalues;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("plan_from_top_k", TORCH_BOX(&from_top_k));
  m.impl("plan_from_mask", TORCH_BOX(&from_mask));
  m.impl("plan_from_pairs", TORCH_BOX(&from_pairs));
  m.impl("plan_transpose", TORCH_BOX(&transpose));
  m.impl("plan_select", TORCH_BOX(&select));
  m.impl("plan_select_backward", TORCH_BOX(&select_backward));
  m.impl("plan_gather", TORCH_BOX(&gather));
  m.impl("plan_combine", TORCH_BOX(&combine));
  m.impl("plan_row_dot", TORCH_BOX(&row_dot));
  m.impl("plan_segment_reduce", TORCH_BOX(&segment_reduce));
  m.impl("plan_segment_reduce_backward", TORCH_BOX(&segment_reduce_backward));
}

}  // namespace anabranch
