// What the plan's ops ask of their arguments, on every device; and, on the CPU, of the plan's contents.
#pragma once

#include <tuple>

#include "anabranch/plan/build.hpp"
#include "torch.hpp"

namespace anabranch {

inline void check_plan(const char* op, const Tensor& group_offsets, const Tensor& item_ids) {
  check_index_vector(op, "group_offsets", group_offsets);
  check_index_vector(op, "item_ids", item_ids);
  check(group_offsets.size(0) >= 1, op, ": group_offsets has shape (0,), must be (num_groups + 1,)");
  check_same_device(op, "item_ids", item_ids, "group_offsets", group_offsets);
}

inline void check_weights(const char* op, const std::optional<Tensor>& weights, const Tensor& values,
                          int64_t capacity) {
  if (!weights) return;
  const bool is_double = values.scalar_type() == ScalarType::Double;
  check_dtype(op, "weights", *weights, is_double ? ScalarType::Double : ScalarType::Float);
  check_dim(op, "weights", *weights, 1);
  check(weights->size(0) == capacity, op, ": weights has shape ", shape_string(*weights), ", must be (capacity,) = (",
        capacity, ",)");
  check_same_device(op, "weights", *weights, "the plan", values);
}

/// CPU only: offsets start at 0, never decrease, and stay within the capacity. Returns the number of entries.
inline int64_t check_offsets(const char* op, const char* name, const Tensor& offsets, int64_t capacity) {
  const int32_t* values = data<int32_t>(offsets);
  const int64_t last = offsets.size(0) - 1;
  check(last >= 0 && values[0] == 0, op, ": ", name, "[0] is ", last >= 0 ? values[0] : -1,
        ", must be 0; offsets are cumulative from 0");
  for (int64_t i = 0; i < last; ++i) {
    check(values[i] <= values[i + 1], op, ": ", name, "[", i + 1, "] is ", values[i + 1], ", must be at least ", name,
          "[", i, "] = ", values[i], "; offsets are cumulative");
  }
  check(values[last] <= capacity, op, ": ", name, "[-1] is ", values[last], ", must be at most the number of rows, ",
        capacity, "; the plan is for another number of rows");
  return values[last];
}

/// CPU only: the first `count` ids lie in [0, bound).
inline void check_ids(const char* op, const char* name, const int32_t* ids, int64_t count, int64_t bound,
                      const char* advice = "the plan was made for other rows") {
  for (int64_t i = 0; i < count; ++i) {
    check(ids[i] >= 0 && ids[i] < bound, op, ": ", name, "[", i, "] is ", ids[i], ", must be in [0, ", bound, "); ",
          advice);
  }
}

inline PlanArrays plan_arrays(const Tensor& group_offsets, const Tensor& item_ids, int32_t* source_ids = nullptr) {
  return {const_cast<int32_t*>(data<int32_t>(group_offsets)), const_cast<int32_t*>(data<int32_t>(item_ids)), source_ids,
          group_offsets.size(0) - 1, item_ids.size(0)};
}

/// A plan's entries must be countable in int32.
inline void check_capacity(const char* op, int64_t capacity, int64_t num_groups, int64_t num_items) {
  constexpr int64_t limit = INT32_MAX;
  check(capacity >= 0 && capacity < limit, op, ": the plan would have ", capacity, " entries, must be below 2^31 - 1",
        "; split the rows over several calls");
  check(num_groups >= 0 && num_groups < limit, op, ": num_groups is ", num_groups, ", must be in [0, 2^31 - 1)");
  check(num_items >= 0 && num_items < limit, op, ": num_items is ", num_items, ", must be in [0, 2^31 - 1)");
}

/// What a builder or the transpose returns: offsets, ids, and where each entry came from.
struct PlanTensors {
  Tensor group_offsets, item_ids, source_ids;
  PlanTensors(const Tensor& like, int64_t num_groups, int64_t capacity)
      : group_offsets(empty_on(like, {num_groups + 1}, ScalarType::Int)),
        item_ids(empty_on(like, {capacity}, ScalarType::Int)),
        source_ids(empty_on(like, {capacity}, ScalarType::Int)) {}
  PlanArrays arrays() const { return plan_arrays(group_offsets, item_ids, mutable_data<int32_t>(source_ids)); }
  /// The same three of a transposed plan, whose groups are the plan's items.
  TransposedArrays transposed_arrays() const {
    return {mutable_data<int32_t>(group_offsets), mutable_data<int32_t>(item_ids), mutable_data<int32_t>(source_ids),
            group_offsets.size(0) - 1};
  }
  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {group_offsets, item_ids, source_ids}; }
};

inline void check_from_top_k(const char* op, const Tensor& indices, int64_t num_groups) {
  check_dim(op, "indices", indices, 2);
  const ScalarType type = indices.scalar_type();
  check(type == ScalarType::Long || type == ScalarType::Int, op, ": indices is ", dtype_name(type),
        ", must be int64 or int32; convert it with .to(torch.int64)");
  check_capacity(op, indices.numel(), num_groups, indices.size(0));
}

inline void check_from_mask(const char* op, const Tensor& mask, int64_t capacity) {
  check_dim(op, "mask", mask, 2);
  check_dtype(op, "mask", mask, ScalarType::Bool);
  check(capacity >= 0 && capacity < INT32_MAX, op, ": capacity is ", capacity,
        ", must be in [0, 2^31 - 1); pass the most pairs that the mask may hold");
  check_capacity(op, mask.numel(), mask.size(1), mask.size(0));
}

inline void check_from_pairs(const char* op, const Tensor& item_ids, const Tensor& group_ids, int64_t num_items,
                             int64_t num_groups) {
  check_index_vector(op, "item_ids", item_ids);
  check_index_vector(op, "group_ids", group_ids, item_ids.size(0));
  check_same_device(op, "group_ids", group_ids, "item_ids", item_ids);
  check_capacity(op, item_ids.size(0), num_groups, num_items);
}

inline void check_transpose(const char* op, const Tensor& group_offsets, const Tensor& item_ids, int64_t num_items) {
  check_plan(op, group_offsets, item_ids);
  check_capacity(op, item_ids.size(0), group_offsets.size(0) - 1, num_items);
}

inline void check_select(const char* op, const Tensor& values, const Tensor& source_ids) {
  check_floating(op, "values", values);
  check_index_vector(op, "source_ids", source_ids);
  check_same_device(op, "source_ids", source_ids, "values", values);
}

inline void check_select_backward(const char* op, const Tensor& grad, const Tensor& source_ids, int64_t num_values) {
  check_floating(op, "grad", grad);
  check_index_vector(op, "source_ids", source_ids, grad.numel());
  check_same_device(op, "source_ids", source_ids, "grad", grad);
  check(num_values >= 0, op, ": num_values is ", num_values, ", must not be negative");
}

inline void check_gather(const char* op, const Tensor& x, const std::optional<Tensor>& weights,
                         const Tensor& group_offsets, const Tensor& item_ids) {
  check_floating(op, "x", x);
  check_dim(op, "x", x, 2);
  check_plan(op, group_offsets, item_ids);
  check_same_device(op, "group_offsets", group_offsets, "x", x);
  check_weights(op, weights, x, item_ids.size(0));
}

inline void check_combine(const char* op, const Tensor& values, const std::optional<Tensor>& weights,
                          const Tensor& item_offsets, const Tensor& entry_ids) {
  check_floating(op, "values", values);
  check_dim(op, "values", values, 2);
  check_index_vector(op, "item_offsets", item_offsets);
  check(item_offsets.size(0) >= 1, op, ": item_offsets has shape (0,), must be (num_items + 1,)");
  check_index_vector(op, "entry_ids", entry_ids, values.size(0));
  check_same_device(op, "item_offsets", item_offsets, "values", values);
  check_same_device(op, "entry_ids", entry_ids, "values", values);
  check_weights(op, weights, values, values.size(0));
}

inline void check_row_dot(const char* op, const Tensor& values, const Tensor& x, const Tensor& group_offsets,
                          const Tensor& item_ids) {
  check_gather(op, x, std::nullopt, group_offsets, item_ids);
  check_dtype(op, "values", values, x.scalar_type());
  check_same_device(op, "values", values, "x", x);
  check(values.dim() == 2 && values.size(0) == item_ids.size(0) && values.size(1) == x.size(1), op,
        ": values has shape ", shape_string(values), ", must be (capacity, width) = (", item_ids.size(0), ", ",
        x.size(1), ")");
}

inline void check_segment_reduce(const char* op, const Tensor& values, const Tensor& group_offsets, int64_t reduction) {
  check_floating(op, "values", values);
  check_dim(op, "values", values, 2);
  check_index_vector(op, "group_offsets", group_offsets);
  check(group_offsets.size(0) >= 1, op, ": group_offsets has shape (0,), must be (num_groups + 1,)");
  check_same_device(op, "group_offsets", group_offsets, "values", values);
  check(reduction >= 0 && reduction <= 3, op, ": reduction is ", reduction,
        ", must be 0 (sum), 1 (mean), 2 (max) or 3 (min)");
  check_capacity(op, values.size(0), group_offsets.size(0) - 1, 0);
}

inline void check_segment_reduce_backward(const char* op, const Tensor& dout, const Tensor& arg,
                                          const Tensor& group_offsets, int64_t capacity, int64_t reduction) {
  check_segment_reduce(op, dout, group_offsets, reduction);
  const int64_t num_groups = group_offsets.size(0) - 1;
  check(dout.size(0) == num_groups, op, ": dout has shape ", shape_string(dout), ", must be (num_groups, width) with ",
        num_groups, " groups");
  check_capacity(op, capacity, num_groups, 0);
  check_dtype(op, "arg", arg, ScalarType::Int);
  check_same_device(op, "arg", arg, "dout", dout);
  check(reduction < 2 || (arg.is_contiguous() && arg.numel() == dout.numel()), op, ": arg has shape ",
        shape_string(arg), ", must be contiguous and have the shape of dout, ", shape_string(dout));
}

}  // namespace anabranch
