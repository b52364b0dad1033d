// The ops of sets of two rows of a graph, on every device: `Kernels` is where they run.
#pragma once

#include <tuple>

#include "temporal/row_intersect_checks.hpp"

namespace anabranch {

template <class Kernels>
struct RowIntersectOps {
  static Tensor row_set_sum(const Tensor& x_in, const Tensor& row_offsets, const Tensor& column_ids, const Tensor& left,
                            const Tensor& right, int64_t mode, bool exclude_pair,
                            const std::optional<Tensor>& weights_in, int64_t seed) {
    constexpr const char* op = "row_set_sum";
    RowPairArguments in(op, row_offsets, column_ids, left, right, mode, exclude_pair);
    in.check_rows(op, "x", x_in, in.nodes(), "node");
    RowSetWeightsArgument weights(op, in, x_in, weights_in, seed);
    const Kernels kernels(row_offsets);
    in.make_contiguous();
    weights.make_contiguous();
    if constexpr (Kernels::on_host) in.check_values(op);
    const Tensor x = as_contiguous(x_in), out = empty_on(x, {in.pairs(), x.size(1)}, x.scalar_type());
    dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
      kernels.sum(in, weights.get<T>(), data<T>(x), x.size(1), data_if_any<T>(out));
    });
    return out;
  }

  static Tensor row_set_sum_backward(const Tensor& dout_in, const Tensor& row_offsets, const Tensor& column_ids,
                                     const Tensor& left, const Tensor& right, int64_t mode, bool exclude_pair,
                                     const std::optional<Tensor>& weights_in, int64_t seed) {
    constexpr const char* op = "row_set_sum_backward";
    RowPairArguments in(op, row_offsets, column_ids, left, right, mode, exclude_pair);
    in.check_rows(op, "dout", dout_in, in.pairs(), "pair");
    RowSetWeightsArgument weights(op, in, dout_in, weights_in, seed);
    const Kernels kernels(row_offsets);
    in.make_contiguous();
    weights.make_contiguous();
    if constexpr (Kernels::on_host) in.check_values(op);
    const Tensor dout = as_contiguous(dout_in);
    const Tensor dx = empty_on(dout, {in.nodes(), dout.size(1)}, dout.scalar_type());
    dispatch_floating(dout.scalar_type(), [&]<class T>(Type<T>) {
      kernels.sum_backward(in, weights.get<T>(), data<T>(dout), dout.size(1), data_if_any<T>(dx));
    });
    return dx;
  }

  static Tensor row_set_dot(const Tensor& dout_in, const Tensor& x_in, const Tensor& row_offsets,
                            const Tensor& column_ids, const Tensor& left, const Tensor& right, int64_t mode,
                            bool exclude_pair, int64_t capacity, int64_t seed) {
    constexpr const char* op = "row_set_dot";
    RowPairArguments in(op, row_offsets, column_ids, left, right, mode, exclude_pair);
    in.check_rows(op, "dout", dout_in, in.pairs(), "pair");
    in.check_rows(op, "x", x_in, in.nodes(), "node");
    check_dtype(op, "x", x_in, dout_in.scalar_type());
    check(x_in.size(1) == dout_in.size(1), op, ": x has shape ", shape_string(x_in), ", must be (", in.nodes(), ", ",
          dout_in.size(1), ") like dout; pass rows of one width");
    check_capacity_of_sets(op, capacity);
    const Kernels kernels(row_offsets);
    in.make_contiguous();
    if constexpr (Kernels::on_host) in.check_values(op);
    const Tensor dout = as_contiguous(dout_in), x = as_contiguous(x_in);
    const Tensor out = empty_on(dout, {in.pairs(), capacity}, dout.scalar_type());
    dispatch_floating(dout.scalar_type(), [&]<class T>(Type<T>) {
      kernels.dot(in, data<T>(dout), data<T>(x), x.size(1), capacity, seed, data_if_any<T>(out));
    });
    return out;
  }

  static std::tuple<Tensor, Tensor> row_set(const Tensor& row_offsets, const Tensor& column_ids, const Tensor& left,
                                            const Tensor& right, int64_t mode, bool exclude_pair, int64_t capacity,
                                            int64_t seed) {
    constexpr const char* op = "row_set";
    RowPairArguments in(op, row_offsets, column_ids, left, right, mode, exclude_pair);
    check_capacity_of_sets(op, capacity);
    const Kernels kernels(row_offsets);
    in.make_contiguous();
    if constexpr (Kernels::on_host) in.check_values(op);
    const Tensor ids = empty_on(in.left, {in.pairs(), capacity}, ScalarType::Long);
    const Tensor sizes = empty_on(in.left, {in.pairs()}, ScalarType::Long);
    kernels.sets(in, capacity, seed, data_if_any<int64_t>(ids), data_if_any<int64_t>(sizes));
    return {ids, sizes};
  }
};

#define ANABRANCH_ROW_INTERSECT_OPS(m, Kernels)                                               \
  m.impl("row_set_sum", TORCH_BOX(&RowIntersectOps<Kernels>::row_set_sum));                   \
  m.impl("row_set_sum_backward", TORCH_BOX(&RowIntersectOps<Kernels>::row_set_sum_backward)); \
  m.impl("row_set_dot", TORCH_BOX(&RowIntersectOps<Kernels>::row_set_dot));                   \
  m.impl("row_set", TORCH_BOX(&RowIntersectOps<Kernels>::row_set))

}  // namespace anabranch
