// The plan room in torch: schemas (the room's contract) and CPU kernels. Python's docstrings say what each op means.
#include <tuple>

#include "anabranch/plan/build_cpu.hpp"
#include "anabranch/plan/reduce_cpu.hpp"
#include "plan/checks.hpp"

namespace anabranch {
namespace {

using Built = std::tuple<Tensor, Tensor, Tensor>;

template <class Index>
void check_group_ids(const char* op, const char* name, const Index* ids, int64_t n, int64_t num_groups) {
  for (int64_t p = 0; p < n; ++p) {
    check(ids[p] >= 0 && ids[p] <= num_groups, op, ": ", name, " holds ", ids[p], " at position ", p,
          ", must be in [0, ", num_groups, "]; ", num_groups, " (= num_groups) means no group");
  }
}

Built from_top_k(const Tensor& indices_in, int64_t num_groups) {
  constexpr const char* op = "from_top_k";
  check_from_top_k(op, indices_in, num_groups);
  const Tensor indices = as_contiguous(indices_in);
  const int64_t n = indices.numel(), top_k = indices.size(1);
  PlanTensors plan(indices, num_groups, n);
  auto build = [&](const auto* ids) {
    check_group_ids(op, "indices", ids, n, num_groups);
    build_plan_cpu(
        n, [=](int64_t p) { return p / top_k; }, [=](int64_t p) -> int64_t { return ids[p]; }, plan.arrays());
  };
  indices.scalar_type() == ScalarType::Long ? build(data<int64_t>(indices)) : build(data<int32_t>(indices));
  return plan.tuple();
}

Built from_mask(const Tensor& mask_in, int64_t capacity) {
  constexpr const char* op = "from_mask";
  check_from_mask(op, mask_in, capacity);
  const int64_t n = mask_in.numel(), num_groups = mask_in.size(1);
  const Tensor mask = as_contiguous(mask_in);
  const bool* bits = data<bool>(mask);
  int64_t count = 0;
  for (int64_t p = 0; p < n; ++p) count += bits[p];
  check(count <= capacity, op, ": capacity is ", capacity, ", must be at least the number of pairs, ", count,
        "; leave it out where that is not known");
  PlanTensors plan(mask, num_groups, capacity);
  build_plan_cpu(
      n, [=](int64_t p) { return p / num_groups; }, [=](int64_t p) { return bits[p] ? p % num_groups : num_groups; },
      plan.arrays());
  return plan.tuple();
}

Built from_pairs(const Tensor& item_ids, const Tensor& group_ids, int64_t num_items, int64_t num_groups) {
  constexpr const char* op = "from_pairs";
  check_from_pairs(op, item_ids, group_ids, num_items, num_groups);
  const int64_t n = item_ids.size(0);
  const int32_t *items = data<int32_t>(item_ids), *groups = data<int32_t>(group_ids);
  check_ids(op, "item_ids", items, n, num_items, "num_items is how many rows there are");
  check_group_ids(op, "group_ids", groups, n, num_groups);
  PlanTensors plan(item_ids, num_groups, n);
  build_plan_from_unsorted_cpu(
      n, num_items, [=](int64_t p) -> int64_t { return items[p]; }, [=](int64_t p) -> int64_t { return groups[p]; },
      plan.arrays());
  return plan.tuple();
}

Built transpose(const Tensor& group_offsets, const Tensor& item_ids, int64_t num_items) {
  constexpr const char* op = "transpose";
  check_transpose(op, group_offsets, item_ids, num_items);
  const int64_t num_entries = check_offsets(op, "group_offsets", group_offsets, item_ids.size(0));
  check_ids(op, "item_ids", data<int32_t>(item_ids), num_entries, num_items);
  const PlanTensors by_item(item_ids, num_items, item_ids.size(0));
  transpose_plan_cpu(plan_arrays(group_offsets, item_ids), by_item.transposed_arrays());
  return by_item.tuple();
}

Tensor select(const Tensor& values_in, const Tensor& source_ids) {
  constexpr const char* op = "select";
  check_select(op, values_in, source_ids);
  const Tensor values = as_contiguous(values_in);
  const int64_t n = source_ids.size(0), bound = values.numel();
  const int32_t* ids = data<int32_t>(source_ids);
  for (int64_t e = 0; e < n; ++e) {
    check(ids[e] < bound, op, ": source_ids[", e, "] is ", ids[e], ", must be below the number of values, ", bound);
  }
  const Tensor out = empty_on(values, {n}, values.scalar_type());
  dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    const T* from = data<T>(values);
    T* to = mutable_data<T>(out);
    for (int64_t e = 0; e < n; ++e) to[e] = ids[e] < 0 ? T(0.0f) : from[ids[e]];
  });
  return out;
}

Tensor select_backward(const Tensor& grad_in, const Tensor& source_ids, int64_t num_values) {
  constexpr const char* op = "select_backward";
  check_select_backward(op, grad_in, source_ids, num_values);
  const Tensor grad = as_contiguous(grad_in);
  const int64_t n = source_ids.size(0);
  const int32_t* ids = data<int32_t>(source_ids);
  for (int64_t e = 0; e < n; ++e) {
    check(ids[e] < num_values, op, ": source_ids[", e, "] is ", ids[e], ", must be below num_values = ", num_values);
  }
  const Tensor out = zeros_on(grad, {num_values}, grad.scalar_type());
  dispatch_floating(grad.scalar_type(), [&]<class T>(Type<T>) {
    const T* from = data<T>(grad);
    T* to = mutable_data<T>(out);
    for (int64_t e = 0; e < n; ++e) {
      if (ids[e] >= 0) to[ids[e]] = from[e];
    }
  });
  return out;
}

Tensor gather(const Tensor& x_in, const std::optional<Tensor>& weights_in, const Tensor& group_offsets,
              const Tensor& item_ids, const Tensor&, const Tensor&) {  // the transpose is for the backward
  constexpr const char* op = "gather";
  check_gather(op, x_in, weights_in, group_offsets, item_ids);
  const int64_t capacity = item_ids.size(0), width = x_in.size(1);
  const int64_t num_entries = check_offsets(op, "group_offsets", group_offsets, capacity);
  check_ids(op, "item_ids", data<int32_t>(item_ids), num_entries, x_in.size(0));
  const Tensor x = as_contiguous(x_in);
  const auto weights = as_contiguous(weights_in);
  const Tensor out = empty_on(x, {capacity, width}, x.scalar_type());
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    gather_cpu(data<T>(x), data<accumulate_t<T>>(weights), data<int32_t>(item_ids), num_entries, capacity, width,
               mutable_data<T>(out));
  });
  return out;
}

Tensor combine(const Tensor& values_in, const std::optional<Tensor>& weights_in, const Tensor& item_offsets,
               const Tensor& entry_ids, const Tensor&, const Tensor&) {  // the plan itself is for the backward
  constexpr const char* op = "combine";
  check_combine(op, values_in, weights_in, item_offsets, entry_ids);
  const int64_t capacity = values_in.size(0), num_items = item_offsets.size(0) - 1, width = values_in.size(1);
  const int64_t num_entries = check_offsets(op, "item_offsets", item_offsets, capacity);
  check_ids(op, "entry_ids", data<int32_t>(entry_ids), num_entries, capacity);
  const Tensor values = as_contiguous(values_in);
  const auto weights = as_contiguous(weights_in);
  const Tensor out = empty_on(values, {num_items, width}, values.scalar_type());
  dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    combine_cpu(data<T>(values), data<accumulate_t<T>>(weights), data<int32_t>(item_offsets), data<int32_t>(entry_ids),
                num_items, width, mutable_data<T>(out));
  });
  return out;
}

Tensor row_dot(const Tensor& values_in, const Tensor& x_in, const Tensor& group_offsets, const Tensor& item_ids,
               const Tensor&, const Tensor&) {  // the transpose is for the backward
  constexpr const char* op = "row_dot";
  check_row_dot(op, values_in, x_in, group_offsets, item_ids);
  const int64_t capacity = item_ids.size(0), width = x_in.size(1);
  const int64_t num_entries = check_offsets(op, "group_offsets", group_offsets, capacity);
  check_ids(op, "item_ids", data<int32_t>(item_ids), num_entries, x_in.size(0));
  const Tensor values = as_contiguous(values_in), x = as_contiguous(x_in);
  const Tensor out = empty_on(x, {capacity}, accumulate_type(x.scalar_type()));
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    row_dot_cpu(data<T>(values), data<T>(x), data<int32_t>(item_ids), num_entries, capacity, width,
                mutable_data<accumulate_t<T>>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> segment_reduce(const Tensor& values_in, const Tensor& group_offsets, int64_t reduction) {
  constexpr const char* op = "segment_reduce";
  check_segment_reduce(op, values_in, group_offsets, reduction);
  check_offsets(op, "group_offsets", group_offsets, values_in.size(0));
  const int64_t num_groups = group_offsets.size(0) - 1, width = values_in.size(1);
  const Tensor values = as_contiguous(values_in);
  const bool selects = reduction >= static_cast<int64_t>(Reduction::max);
  const Tensor out = empty_on(values, {num_groups, width}, values.scalar_type());
  const Tensor arg = empty_on(values, {selects ? num_groups : 0, width}, ScalarType::Int);
  dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    segment_reduce_cpu(data<T>(values), data<int32_t>(group_offsets), num_groups, width,
                       static_cast<Reduction>(reduction), mutable_data<T>(out),
                       selects ? mutable_data<int32_t>(arg) : nullptr);
  });
  return {out, arg};
}

Tensor segment_reduce_backward(const Tensor& dout_in, const Tensor& arg, const Tensor& group_offsets, int64_t capacity,
                               int64_t reduction) {
  constexpr const char* op = "segment_reduce_backward";
  check_segment_reduce_backward(op, dout_in, arg, group_offsets, capacity, reduction);
  check_offsets(op, "group_offsets", group_offsets, capacity);
  const int64_t num_groups = group_offsets.size(0) - 1, width = dout_in.size(1);
  const Tensor dout = as_contiguous(dout_in);
  const Tensor dvalues = empty_on(dout, {capacity, width}, dout.scalar_type());
  dispatch_floating(dout.scalar_type(), [&]<class T>(Type<T>) {
    segment_reduce_backward_cpu(data<T>(dout), data<int32_t>(arg), data<int32_t>(group_offsets), num_groups, capacity,
                                width, static_cast<Reduction>(reduction), mutable_data<T>(dvalues));
  });
  return dvalues;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("plan_from_top_k(Tensor indices, SymInt num_groups) -> (Tensor, Tensor, Tensor)");
  m.def("plan_from_mask(Tensor mask, SymInt capacity) -> (Tensor, Tensor, Tensor)");
  m.def(
      "plan_from_pairs(Tensor item_ids, Tensor group_ids, SymInt num_items, SymInt num_groups) -> (Tensor, Tensor, "
      "Tensor)");
  m.def("plan_transpose(Tensor group_offsets, Tensor item_ids, SymInt num_items) -> (Tensor, Tensor, Tensor)");
  m.def("plan_select(Tensor values, Tensor source_ids) -> Tensor");
  m.def("plan_select_backward(Tensor grad, Tensor source_ids, SymInt num_values) -> Tensor");
  m.def(
      "plan_gather(Tensor x, Tensor? weights, Tensor group_offsets, Tensor item_ids, Tensor item_offsets, Tensor "
      "entry_ids) -> Tensor");
  m.def(
      "plan_combine(Tensor values, Tensor? weights, Tensor item_offsets, Tensor entry_ids, Tensor group_offsets, "
      "Tensor item_ids) -> Tensor");
  m.def(
      "plan_row_dot(Tensor values, Tensor x, Tensor group_offsets, Tensor item_ids, Tensor item_offsets, Tensor "
      "entry_ids) -> Tensor");
  m.def("plan_segment_reduce(Tensor values, Tensor group_offsets, int reduction) -> (Tensor, Tensor)");
  m.def(
      "plan_segment_reduce_backward(Tensor dout, Tensor arg, Tensor group_offsets, SymInt capacity, int reduction) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
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
