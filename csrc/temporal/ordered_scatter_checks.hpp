// The arguments of the ordered scatters, on every device.
#pragma once

#include <optional>

#include "anabranch/temporal/ordered_scatter.hpp"
#include "temporal/id_checks.hpp"

namespace anabranch {

/// A contiguous table that is written.
inline void check_written_table(const char* op, const char* name, const Tensor& table, int64_t dim) {
  check_dim(op, name, table, dim);
  check(table.is_contiguous(), op, ": ", name, " is not contiguous, must be; it is written in place: keep it whole");
}

inline void check_int64_vector(const char* op, const char* name, const Tensor& tensor, const char* anchor_name,
                               const Tensor& anchor, int64_t size = -1) {
  check_same_device(op, name, tensor, anchor_name, anchor);
  check_dtype(op, name, tensor, ScalarType::Long);
  check_dim(op, name, tensor, 1);
  check(size < 0 || tensor.size(0) == size, op, ": ", name, " has shape ", shape_string(tensor), ", must be (", size,
        ",); give each entry of the batch one");
  check(tensor.size(0) < int64_t{1} << 30, op, ": ", name, " has shape ", shape_string(tensor),
        ", must be below 2^30; pass the batch in parts");
}

struct ScatterArguments {
  Tensor table, index, values;
  std::optional<Tensor> weights;

  ScatterArguments(const char* op, const Tensor& table_in, const Tensor& index_in, const Tensor& values_in,
                   std::optional<Tensor> weights_in = std::nullopt)
      : table(table_in), index(index_in), values(values_in), weights(std::move(weights_in)) {
    check_written_table(op, "table", table, 2);
    check_int64_vector(op, "index", index, "table", table);
    check_same_device(op, "values", values, "table", table);
    check_dtype(op, "values", values, table.scalar_type());
    check_dim(op, "values", values, 2);
    check(values.size(0) == index.size(0) && values.size(1) == table.size(1), op, ": values has shape ",
          shape_string(values), ", must be (", index.size(0), ", ", table.size(1),
          ") like index and the rows of table; give each index a row");
    if (!weights) return;
    check_same_device(op, "weights", *weights, "table", table);
    check_dtype(op, "weights", *weights, table.scalar_type());
    check_dim(op, "weights", *weights, 1);
    check(weights->size(0) == index.size(0), op, ": weights has shape ", shape_string(*weights), ", must be (",
          index.size(0), ",) like index; give each row a weight");
  }

  /// One block each, and none of them in the table.
  void make_contiguous(const char* op) {
    index = as_contiguous(index), values = as_contiguous(values), weights = as_contiguous(weights);
    check_apart(op, "index", index, "table", table);
    check_apart(op, "values", values, "table", table);
    if (weights) check_apart(op, "weights", *weights, "table", table);
  }

  /// On the CPU.
  void check_values(const char* op) const {
    check_ids(op, "index", index, table.size(0), "make a table with more rows or check the ids",
              NegativeIds::mean_none);
  }

  template <class T>
  OrderedScatterAdd<T> add() const {
    return {mutable_data<T>(table), data<int64_t>(index), data<T>(values), data<T>(weights),
            table.size(0),          table.size(1),        index.size(0)};
  }
  OrderedScatter set() const {
    return {table.mutable_data_ptr(),
            data<int64_t>(index),
            values.const_data_ptr(),
            table.size(0),
            table.size(1) * static_cast<int64_t>(table.element_size()),
            index.size(0)};
  }
};

/// Calls f(Type<T>{}) with the element type of a table of sums: floating, or int64.
template <class F>
void dispatch_summed(const char* op, const Tensor& table, F&& f) {
  if (table.scalar_type() == ScalarType::Long) return f(Type<int64_t>{});
  check_floating(op, "table", table);
  dispatch_floating(table.scalar_type(), f);
}

struct NodeEventArguments {
  Tensor nodes, times;
  std::optional<Tensor> ids;

  NodeEventArguments(const char* op, const Tensor& nodes_in, const Tensor& times_in, std::optional<Tensor> ids_in)
      : nodes(nodes_in), times(times_in), ids(std::move(ids_in)) {
    check_int64_vector(op, "nodes", nodes, "nodes", nodes);
    check_int64_vector(op, "time", times, "nodes", nodes, nodes.size(0));
    if (ids) check_int64_vector(op, "event_id", *ids, "nodes", nodes, nodes.size(0));
    nodes = as_contiguous(nodes), times = as_contiguous(times), ids = as_contiguous(ids);
  }
  NodeEvents events() const { return {data<int64_t>(nodes), data<int64_t>(times), data<int64_t>(ids), nodes.size(0)}; }
  Tensor result() const { return empty_on(nodes, {nodes.size(0)}, ScalarType::Bool); }
};

}  // namespace anabranch
