// The arguments of row_set, row_set_sum, row_set_dot and their backwards, on every device; and, on the CPU, of the
// graph.
#pragma once

#include <vector>

#include "anabranch/temporal/row_intersect.hpp"
#include "temporal/id_checks.hpp"

namespace anabranch {

struct RowPairArguments {
  Tensor row_offsets, column_ids, left, right;
  RowSetMode mode;
  bool exclude_pair;

  RowPairArguments(const char* op, const Tensor& row_offsets_in, const Tensor& column_ids_in, const Tensor& left_in,
                   const Tensor& right_in, int64_t mode_in, bool exclude_pair_in)
      : row_offsets(row_offsets_in),
        column_ids(column_ids_in),
        left(left_in),
        right(right_in),
        mode(static_cast<RowSetMode>(mode_in)),
        exclude_pair(exclude_pair_in) {
    check_ids_vector(op, "row_offsets", row_offsets);
    check(row_offsets.size(0) >= 1, op, ": row_offsets has shape (0,), must be (nodes + 1,); begin it with 0");
    check_ids_vector(op, "column_ids", column_ids);
    check_ids_vector(op, "left", left);
    check_ids_vector(op, "right", right);
    check(right.size(0) == left.size(0), op, ": right has shape ", shape_string(right), ", must be (", left.size(0),
          ",) like left; pass two nodes for each pair");
    check(mode_in >= 0 && mode_in <= 2, op, ": mode is ", mode_in,
          ", must be 0 (intersection), 1 (left_difference) or 2 (right_difference); pass one of these");
  }

  int64_t nodes() const { return row_offsets.size(0) - 1; }
  int64_t pairs() const { return left.size(0); }

  void make_contiguous() {
    row_offsets = as_contiguous(row_offsets), column_ids = as_contiguous(column_ids);
    left = as_contiguous(left), right = as_contiguous(right);
  }

  RowPairs problem() const {
    return {data<int64_t>(row_offsets),
            data<int64_t>(column_ids),
            data<int64_t>(left),
            data<int64_t>(right),
            nodes(),
            column_ids.size(0),
            pairs(),
            mode,
            exclude_pair};
  }

  /// values [count, width] beside the graph: x has a row for each node, dout for each pair.
  void check_rows(const char* op, const char* name, const Tensor& values, int64_t count, const char* what) const {
    check_floating(op, name, values);
    check_same_device(op, name, values, "row_offsets", row_offsets);
    check(values.dim() == 2 && values.size(0) == count, op, ": ", name, " has shape ", shape_string(values),
          ", must be (", count, ", width); pass a row for each ", what);
    check(values.size(1) <= int64_t{128} * 65535, op, ": ", name, " has shape ", shape_string(values),
          ", must be at most ", int64_t{128} * 65535, " wide; pass columns in parts");
  }

  /// CPU only, after make_contiguous: nodes that exist, and of the rows they name, once each, that they lie within the
  /// entries and hold ascending ids of nodes.
  void check_values(const char* op) const {
    std::vector<bool> seen(static_cast<size_t>(nodes()));
    const int64_t* offsets = data<int64_t>(row_offsets);
    const int64_t* ids = data<int64_t>(column_ids);
    check_ids(op, "left", left, nodes(), "pass nodes of the graph");
    check_ids(op, "right", right, nodes(), "pass nodes of the graph");
    for (const int64_t* numbers : {data<int64_t>(left), data<int64_t>(right)}) {
      for (int64_t p = 0; p < pairs(); ++p) {
        const int64_t node = numbers[p];
        if (seen[node]) continue;
        seen[node] = true;
        check_row(op, node, offsets[node], offsets[node + 1], ids);
      }
    }
  }

 private:
  void check_row(const char* op, int64_t node, int64_t begin, int64_t end, const int64_t* ids) const {
    check(begin >= 0 && begin <= end && end <= column_ids.size(0), op, ": row_offsets[", node, "] to [", node + 1,
          "] are ", begin, " to ", end, ", must ascend within [0, ", column_ids.size(0),
          "]; make the graph by csr_from_edges");
    int64_t wrong = 0;
    for (int64_t i = begin + 1; i < end; ++i) wrong += ids[i] <= ids[i - 1];
    check(wrong == 0, op, ": column_ids of node ", node, " are not ascending and distinct in ", wrong,
          " places, must be; make the graph by csr_from_edges");
    check(begin == end || (ids[begin] >= 0 && ids[end - 1] < nodes()), op, ": column_ids of node ", node, " are ",
          begin == end ? 0 : ids[begin], " to ", begin == end ? 0 : ids[end - 1], ", must be in [0, ", nodes(),
          "); pass ids of nodes");
  }

  void check_ids_vector(const char* op, const char* name, const Tensor& tensor) const {
    check_same_device(op, name, tensor, "row_offsets", row_offsets);
    check_dtype(op, name, tensor, ScalarType::Long);
    check_dim(op, name, tensor, 1);
  }
};

inline void check_capacity_of_sets(const char* op, int64_t capacity) {
  check(capacity >= 0, op, ": capacity is ", capacity, ", must be at least 0; pass the ids there shall be room for");
}

/// Weights of the elements that a sum visits, where there are any; contiguous.
struct RowSetWeightsArgument {
  std::optional<Tensor> tensor;
  int64_t seed;

  RowSetWeightsArgument(const char* op, const RowPairArguments& in, const Tensor& values,
                        const std::optional<Tensor>& weights, int64_t seed_in)
      : tensor(weights), seed(seed_in) {
    if (!tensor) return;
    check_same_device(op, "weights", *tensor, "row_offsets", in.row_offsets);
    check_dtype(op, "weights", *tensor, values.scalar_type());
    check(tensor->dim() == 2 && tensor->size(0) == in.pairs(), op, ": weights has shape ", shape_string(*tensor),
          ", must be (", in.pairs(), ", capacity); pass one for each id that row_set gives");
  }

  void make_contiguous() { tensor = as_contiguous(tensor); }
  int64_t capacity() const { return tensor ? tensor->size(1) : 0; }

  template <class T>
  RowSetWeights<T> get() const {
    return {tensor.has_value(), data<T>(tensor), capacity(), seed};
  }
};

}  // namespace anabranch
