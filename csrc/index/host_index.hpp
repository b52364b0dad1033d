// The index of one Python object: memory that may be closed or replaced while others are at work on it.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <memory>
#include <utility>

#include "anabranch/index/functions.hpp"
#include "host_keys.hpp"

namespace anabranch {

/// Whoever works on the memory holds it, so close() and clear() take it away at once and the last one out frees it.
/// With a GIL, a call that keeps it needs no more than the address: nobody can close the index meanwhile.
class HostIndex {
 public:
  using Memory = std::shared_ptr<OwnedIndexArena>;
#if defined(Py_GIL_DISABLED)
  using Held = Memory;
#else
  using Held = OwnedIndexArena*;
#endif

  HostIndex(int key, int value, int64_t max_nodes)
      : key(static_cast<HostKey>(key)),
        value(static_cast<HostValue>(value)),
        key_words(this->key == HostKey::pair ? 2 : 1),
        functions(index_functions(key_words)),
        max_nodes_(max_nodes),
        memory_(std::make_shared<OwnedIndexArena>(key_words, max_nodes)) {}

  const HostKey key;
  const HostValue value;
  const int key_words;
  const IndexFunctions& functions;

  /// For a call that keeps the GIL.
  Held hold() const {
#if defined(Py_GIL_DISABLED)
    return keep();
#else
    check_open(memory_.get());
    return memory_.get();
#endif
  }

  /// For a call that lets it go.
  Memory keep() const {
#if defined(Py_GIL_DISABLED)
    Memory memory = memory_.load();
#else
    Memory memory = memory_;
#endif
    check_open(memory.get());
    return memory;
  }

  bool is_open() const {
#if defined(Py_GIL_DISABLED)
    return memory_.load() != nullptr;
#else
    return memory_ != nullptr;
#endif
  }

  void close() { replace(nullptr); }
  void clear() {
    keep();
    replace(std::make_shared<OwnedIndexArena>(key_words, max_nodes_));
  }

  int64_t size() const { return hold()->view().size(); }

  int64_t memory_bytes() const {
    const int64_t* used = hold()->view().control + IndexControl::used;
    return __atomic_load_n(used, __ATOMIC_RELAXED) * index_node_words * 8;
  }

  [[noreturn]] void raise_full(const char* op) const {
    PyErr_Format(PyExc_MemoryError,
                 "%s: memory is full at %lld bytes, must have room for one more node of %d; erase keys, or copy the "
                 "index with a larger max_bytes",
                 op, static_cast<long long>(max_nodes_) * index_node_words * 8, index_node_words * 8);
    throw nb::python_error();
  }

 private:
  static void check_open(const OwnedIndexArena* memory) {
    check(memory != nullptr, "BSkipList: the index is closed, must be open; make a new one, or load it from a file");
  }

  void replace(Memory fresh) {
#if defined(Py_GIL_DISABLED)
    fresh = memory_.exchange(std::move(fresh));
#else
    memory_.swap(fresh);
#endif
    const nb::gil_scoped_release unlocked;  // giving gigabytes back takes its time
    fresh.reset();
  }

  const int64_t max_nodes_;
#if defined(Py_GIL_DISABLED)
  std::atomic<Memory> memory_;
#else
  Memory memory_;
#endif
};

/// The keys from `first` to `last`, both included, unless there are none.
struct HostBounds {
  HostWords first, last;
  bool any = true;

  /// None is no bound.
  HostBounds(const char* op, HostKey kind, nb::handle minimum, nb::handle maximum, bool with_minimum,
             bool with_maximum) {
    using namespace index_detail;
    first = least_key<2>();
    last = greatest_key<2>();
    if (!minimum.is_none()) set(op, "minimum", kind, minimum, first);
    if (!maximum.is_none()) set(op, "maximum", kind, maximum, last);
    if (!minimum.is_none() && !with_minimum) any = step(kind, first, true) && any;
    if (!maximum.is_none() && !with_maximum) any = step(kind, last, false) && any;
  }

  static bool step(HostKey kind, HostWords& words, bool up) {
    if (kind == HostKey::pair) return index_detail::step_key<2>(words, up);
    IndexKey<1> word{words[0]};
    const bool stepped = index_detail::step_key<1>(word, up);
    words[0] = word[0];
    return stepped;
  }

 private:
  static void set(const char* op, const char* name, HostKey kind, nb::handle object, HostWords& words) {
    const KeyFault fault = words_of_key(kind, object.ptr(), words);
    if (fault > KeyFault::unstored) raise_fault(op, name, kind, object.ptr(), fault);
  }
};

}  // namespace anabranch
