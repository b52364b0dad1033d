// The arguments of the index ops, on every device: the two arrays of an index, keys, and values.
#pragma once

#include "anabranch/index/arena.hpp"
#include "torch.hpp"

namespace anabranch {

/// `nodes` [capacity, 128] and `control` [160], both int64; what the words are is in layout.hpp. Keys are [n] for an
/// index of one word a key, [n, 2] for two.
struct IndexArguments {
  const char* op;
  Tensor nodes, control;
  int key_words = 0;  // what the keys that were given have

  IndexArguments(const char* op, const Tensor& nodes, const Tensor& control) : op(op), nodes(nodes), control(control) {
    check_words("nodes", nodes);
    check(nodes.dim() == 2 && nodes.size(1) == index_node_words && nodes.size(0) > index_root &&
              nodes.size(0) <= int64_t{1} << 32,
          op, ": nodes has shape ", shape_string(nodes), ", must be (2 to 2^32, ", index_node_words,
          "); pass the nodes that bskiplist_init was given");
    check_same_device(op, "control", control, "nodes", nodes);
    check_words("control", control);
    check(control.dim() == 1 && control.size(0) == IndexControl::words, op, ": control has shape ",
          shape_string(control), ", must be (", IndexControl::words, ",); pass the control that belongs to nodes");
    check_apart(op, "control", control, "nodes", nodes);
  }

  /// Checks a batch of keys; one row-major block of them.
  Tensor keys(const char* name, const Tensor& given) {
    check_same_device(op, name, given, "nodes", nodes);
    check_dtype(op, name, given, ScalarType::Long);
    check(given.dim() == 1 || (given.dim() == 2 && given.size(1) == 2), op, ": ", name, " has shape ",
          shape_string(given), ", must be (n,), or (n, 2) for keys of two words; flatten what lies before");
    key_words = static_cast<int>(given.dim());
    return as_contiguous(given);
  }

  /// The ends of ranges: as many as there are beginnings, and of the same kind.
  Tensor ends(const Tensor& last, const Tensor& first) {
    const Tensor checked = keys("last", last);
    check(last.dim() == first.dim() && last.size(0) == first.size(0), op, ": last has shape ", shape_string(last),
          ", must be ", shape_string(first), " like first; give each range its end");
    return checked;
  }

  Tensor values(const Tensor& given, const Tensor& keys) const {
    check_same_device(op, "values", given, "nodes", nodes);
    check_dtype(op, "values", given, ScalarType::Long);
    check(given.dim() == 1 && given.size(0) == keys.size(0), op, ": values has shape ", shape_string(given),
          ", must be (", keys.size(0), ",) like keys; give each key a value");
    return as_contiguous(given);
  }

  /// An op that writes to the index may not read its keys or values from there.
  void check_not_of_index(const char* name, const Tensor& batch) const {
    check_apart(op, name, batch, "nodes", nodes);
    check_apart(op, name, batch, "control", control);
  }

  /// On the CPU only: whether `control` is that of an index of these nodes and keys (any keys if there are none). No
  /// value that passes makes a kernel leave the two arrays by way of `control`.
  void check_control() const {
    const auto word = [this](int at) { return __atomic_load_n(data<int64_t>(control) + at, __ATOMIC_RELAXED); };
    check(word(IndexControl::format) == IndexControl::magic, op,
          ": control is not that of an index, must be; call bskiplist_init first");
    check(word(IndexControl::node_words) == index_node_words, op, ": control is of nodes of ",
          word(IndexControl::node_words), " words, must be of ", index_node_words, "; build the index again");
    const int64_t words = word(IndexControl::key_words);
    check(words == 1 || words == 2, op, ": control is of keys of ", words,
          " words, must be 1 or 2; call bskiplist_init");
    check(key_words == 0 || key_words == words, op, ": keys have ", key_words, " words, must have ", words,
          " like the index; pass ", words == 1 ? "(n,)" : "(n, 2)");
    check(word(IndexControl::capacity) == nodes.size(0), op, ": nodes has shape ", shape_string(nodes), ", must be (",
          word(IndexControl::capacity), ", ", index_node_words, ") as control says; pass the two of one index");
    const auto free = static_cast<uint32_t>(word(IndexControl::free_head));  // before `used`, which only grows
    const int64_t used = word(IndexControl::used);
    check(used > index_root && used <= nodes.size(0), op, ": control says that ", used,
          " nodes are used, must be 2 to ", nodes.size(0), "; it is damaged: build the index again");
    check(free < used, op, ": control says that node ", free, " is free, must be below ", used,
          "; it is damaged: build the index again");
    const int64_t gate = word(IndexControl::gate);
    check(gate >= 0 && gate < IndexControl::size_unit, op, ": control says that ", gate,
          " ask writers to wait, must be 0 or a few; it is damaged: build the index again");
  }

  IndexArena arena() const { return {mutable_data<int64_t>(control), mutable_data<int64_t>(nodes)}; }

  Tensor result(std::initializer_list<int64_t> shape, ScalarType type = ScalarType::Long) const {
    return empty_on(nodes, shape, type);
  }
  /// `n` keys, zeroed.
  Tensor zero_keys(int64_t n) const {
    return key_words == 1 ? zeros_on(nodes, {n}, ScalarType::Long) : zeros_on(nodes, {n, 2}, ScalarType::Long);
  }

 private:
  void check_words(const char* name, const Tensor& tensor) const {
    check_dtype(op, name, tensor, ScalarType::Long);
    check(tensor.is_contiguous(), op, ": ", name, " is not contiguous, must be; pass the tensor that was made for it");
    check(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 64 == 0, op, ": ", name,
          " does not begin a cache line, must be aligned to 64 bytes; pass a .clone() of it");
  }
};

}  // namespace anabranch
