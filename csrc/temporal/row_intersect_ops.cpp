// Sets of two rows of a graph in torch: schemas and CPU kernels.
#include "temporal/row_intersect_ops.hpp"

#include "anabranch/temporal/row_intersect_cpu.hpp"

namespace anabranch {
namespace {

struct CpuRowSets {
  static constexpr bool on_host = true;
  explicit CpuRowSets(const Tensor&) {}

  template <class T>
  void sum(const RowPairArguments& in, const RowSetWeights<T>& weights, const T* x, int64_t width, T* out) const {
    row_set_sum_cpu(in.problem(), weights, x, width, out);
  }
  template <class T>
  void sum_backward(const RowPairArguments& in, const RowSetWeights<T>& weights, const T* dout, int64_t width,
                    T* dx) const {
    row_set_sum_backward_cpu(in.problem(), weights, dout, width, dx);
  }
  template <class T>
  void dot(const RowPairArguments& in, const T* dout, const T* x, int64_t width, int64_t capacity, int64_t seed,
           T* out) const {
    row_set_dot_cpu(in.problem(), dout, x, width, capacity, seed, out);
  }
  void sets(const RowPairArguments& in, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes) const {
    row_set_cpu(in.problem(), capacity, seed, ids, sizes);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def(
      "row_set_sum(Tensor x, Tensor row_offsets, Tensor column_ids, Tensor left, Tensor right, int mode, bool "
      "exclude_pair, Tensor? weights, SymInt seed) -> Tensor");
  m.def(
      "row_set_sum_backward(Tensor dout, Tensor row_offsets, Tensor column_ids, Tensor left, Tensor right, int mode, "
      "bool exclude_pair, Tensor? weights, SymInt seed) -> Tensor");
  m.def(
      "row_set_dot(Tensor dout, Tensor x, Tensor row_offsets, Tensor column_ids, Tensor left, Tensor right, int mode, "
      "bool exclude_pair, SymInt capacity, SymInt seed) -> Tensor");
  m.def(
      "row_set(Tensor row_offsets, Tensor column_ids, Tensor left, Tensor right, int mode, bool exclude_pair, SymInt "
      "capacity, SymInt seed) -> (Tensor ids, Tensor sizes)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) { ANABRANCH_ROW_INTERSECT_OPS(m, CpuRowSets); }

}  // namespace anabranch
