// The index's CUDA kernels in torch. Schemas are in ops.cpp.
//
// What is in the two arrays stays on the device: `control` is not checked here as it is on the CPU. Kernels find
// nothing in memory that is no index, insert nothing there, and never leave the arrays. bskiplist_bulk_load has no
// kernel: it promises to say what is wrong with its keys, which needs the host to wait; bskiplist_insert takes them as
// well.
#include "anabranch/index/erase.cuh"
#include "anabranch/index/find.cuh"
#include "anabranch/index/insert.cuh"
#include "cuda.hpp"
#include "index/checks.hpp"

namespace anabranch {
namespace {

/// The arguments of an op on a GPU, which is current as long as they live.
struct CudaIndexArguments : IndexArguments {
  CudaIndexArguments(const char* op, const Tensor& nodes, const Tensor& control)
      : IndexArguments(op, nodes, control), device(nodes) {}

  IndexArrays arrays() const { return {mutable_data<int64_t>(control), mutable_data<int64_t>(nodes), nodes.size(0)}; }
  Tensor scratch(int64_t words) const { return result({words}); }

  /// Keys of a batch that is sorted: their positions are 32-bit numbers.
  Tensor batch(const Tensor& given) {
    const Tensor checked = keys("keys", given);
    check(checked.size(0) < int64_t{1} << 30, op, ": keys has shape ", shape_string(checked),
          ", must be fewer than 2^30; pass them in parts");
    check_not_of_index("keys", checked);
    return checked;
  }

  /// Calls f.template operator()<key_words>().
  template <class F>
  void dispatch(F&& f) const {
    key_words == 1 ? f.template operator()<1>() : f.template operator()<2>();
  }

  OnDeviceOf device;
};

__global__ void format_kernel(int64_t* control, int key_words, int64_t capacity) {
  control[IndexControl::key_words] = key_words;
  control[IndexControl::node_words] = index_node_words;
  control[IndexControl::capacity] = capacity;
  control[IndexControl::used] = index_root + 1;
  control[IndexControl::format] = IndexControl::magic;
}

void init(const Tensor& nodes, const Tensor& control, int64_t key_words) {
  constexpr const char* op = "bskiplist_init";
  const CudaIndexArguments in(op, nodes, control);
  check(key_words == 1 || key_words == 2, op, ": key_words is ", key_words,
        ", must be 1 or 2; a key has one word or two");
  const IndexArrays index = in.arrays();
  const auto stream = in.device.stream;
  check_cuda(cudaMemsetAsync(index.nodes, 0, nodes.numel() * sizeof(int64_t), stream), "cudaMemsetAsync");
  check_cuda(cudaMemsetAsync(index.control, 0, IndexControl::words * sizeof(int64_t), stream), "cudaMemsetAsync");
  launch(format_kernel, 1u, 1u, 0, stream, index.control, key_words, index.capacity);
}

std::tuple<Tensor, Tensor> find(const Tensor& nodes, const Tensor& control, const Tensor& keys_in) {
  CudaIndexArguments in("bskiplist_find", nodes, control);
  const Tensor keys = in.keys("keys", keys_in);
  const int64_t n = keys.size(0);
  const Tensor values = in.result({n}), found = in.result({n}, ScalarType::Bool);
  in.dispatch([&]<int key_words>() {
    index_find_cuda<key_words>(in.arrays(), n, data<int64_t>(keys), mutable_data<int64_t>(values),
                               mutable_data<bool>(found), in.device.stream);
  });
  return {values, found};
}

std::tuple<Tensor, Tensor, Tensor> lower_bound(const Tensor& nodes, const Tensor& control, const Tensor& keys_in) {
  CudaIndexArguments in("bskiplist_lower_bound", nodes, control);
  const Tensor keys = in.keys("keys", keys_in);
  const int64_t n = keys.size(0);
  const Tensor found_keys = in.zero_keys(n), values = in.result({n}), found = in.result({n}, ScalarType::Bool);
  in.dispatch([&]<int key_words>() {
    index_lower_bound_cuda<key_words>(in.arrays(), n, data<int64_t>(keys), mutable_data<int64_t>(found_keys),
                                      mutable_data<int64_t>(values), mutable_data<bool>(found), in.device.stream);
  });
  return {found_keys, values, found};
}

Tensor range_count(const Tensor& nodes, const Tensor& control, const Tensor& first_in, const Tensor& last_in) {
  CudaIndexArguments in("bskiplist_range_count", nodes, control);
  const Tensor first = in.keys("first", first_in), last = in.ends(last_in, first);
  const int64_t n = first.size(0);
  const Tensor counts = in.result({n});
  in.dispatch([&]<int key_words>() {
    index_range_count_cuda<key_words>(in.arrays(), n, data<int64_t>(first), data<int64_t>(last),
                                      mutable_data<int64_t>(counts), in.device.stream);
  });
  return counts;
}

std::tuple<Tensor, Tensor, Tensor> gather(const Tensor& nodes, const Tensor& control, const Tensor& first_in,
                                          const Tensor& last_in, int64_t capacity) {
  constexpr const char* op = "bskiplist_gather";
  CudaIndexArguments in(op, nodes, control);
  const Tensor first = in.keys("first", first_in), last = in.ends(last_in, first);
  check(capacity >= 0, op, ": capacity is ", capacity,
        ", must be at least 0; pass the entries there shall be room for");
  const int64_t n = first.size(0);
  const Tensor offsets = in.result({n + 1}), keys = in.zero_keys(capacity);
  const Tensor values = zeros_on(nodes, {capacity}, ScalarType::Long), scratch = in.scratch(index_gather_scratch(n));
  in.dispatch([&]<int key_words>() {
    index_gather_cuda<key_words>(in.arrays(), n, data<int64_t>(first), data<int64_t>(last), capacity,
                                 mutable_data<int64_t>(offsets), mutable_data<int64_t>(keys),
                                 mutable_data<int64_t>(values), mutable_data<int64_t>(scratch), in.device.stream);
  });
  return {offsets, keys, values};
}

Tensor insert(const Tensor& nodes, const Tensor& control, const Tensor& keys_in, const Tensor& values_in, bool assign) {
  CudaIndexArguments in("bskiplist_insert", nodes, control);
  const Tensor keys = in.batch(keys_in), values = in.values(values_in, keys);
  in.check_not_of_index("values", values);
  const int64_t n = keys.size(0);
  const Tensor status = in.result({n}, ScalarType::Char);
  in.dispatch([&]<int key_words>() {
    const Tensor scratch = in.scratch(index_insert_scratch<key_words>(n));
    index_insert_cuda<key_words>(in.arrays(), n, data<int64_t>(keys), data<int64_t>(values), assign,
                                 mutable_data<IndexStatus>(status), mutable_data<int64_t>(scratch), in.device.stream);
  });
  return status;
}

Tensor erase(const Tensor& nodes, const Tensor& control, const Tensor& keys_in) {
  CudaIndexArguments in("bskiplist_erase", nodes, control);
  const Tensor keys = in.batch(keys_in);
  const int64_t n = keys.size(0);
  const Tensor status = in.result({n}, ScalarType::Char);
  in.dispatch([&]<int key_words>() {
    const Tensor scratch = in.scratch(index_erase_scratch<key_words>(n));
    index_erase_cuda<key_words>(in.arrays(), n, data<int64_t>(keys), mutable_data<IndexStatus>(status),
                                mutable_data<int64_t>(scratch), in.device.stream);
  });
  return status;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("bskiplist_init", TORCH_BOX(&init));
  m.impl("bskiplist_find", TORCH_BOX(&find));
  m.impl("bskiplist_lower_bound", TORCH_BOX(&lower_bound));
  m.impl("bskiplist_range_count", TORCH_BOX(&range_count));
  m.impl("bskiplist_gather", TORCH_BOX(&gather));
  m.impl("bskiplist_insert", TORCH_BOX(&insert));
  m.impl("bskiplist_erase", TORCH_BOX(&erase));
}

}  // namespace anabranch
