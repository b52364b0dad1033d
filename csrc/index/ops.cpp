// The index in torch: schemas (the room's contract) and CPU kernels. Python's docstrings say what each op means.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <tuple>

#include "anabranch/index/functions.hpp"
#include "index/checks.hpp"

namespace anabranch {
namespace {

using index_detail::BulkLoad;

void init(const Tensor& nodes, const Tensor& control, int64_t key_words) {
  constexpr const char* op = "bskiplist_init";
  const IndexArguments in(op, nodes, control);
  check(key_words == 1 || key_words == 2, op, ": key_words is ", key_words,
        ", must be 1 or 2; a key has one word or two");
  advise_huge_pages(nodes);
  const IndexArena arena = in.arena();
  // Every word, so that any memory will do: a lock that nobody holds would be waited for.
  parallel_for(nodes.size(0), 1024, [&](int64_t begin, int64_t end) {
    std::memset(arena.nodes + begin * index_node_words, 0, (end - begin) * index_node_words * sizeof(int64_t));
  });
  std::memset(arena.control, 0, IndexControl::words * sizeof(int64_t));
  arena.format(static_cast<int>(key_words), nodes.size(0));
}

std::tuple<Tensor, Tensor> find(const Tensor& nodes, const Tensor& control, const Tensor& keys_in) {
  IndexArguments in("bskiplist_find", nodes, control);
  const Tensor keys = in.keys("keys", keys_in);
  in.check_control();
  const int64_t n = keys.size(0);
  const Tensor values = in.result({n}), found = in.result({n}, ScalarType::Bool);
  index_functions(in.key_words)
      .find_batch(in.arena(), n, data<int64_t>(keys), mutable_data<int64_t>(values), mutable_data<bool>(found));
  return {values, found};
}

std::tuple<Tensor, Tensor, Tensor> lower_bound(const Tensor& nodes, const Tensor& control, const Tensor& keys_in) {
  IndexArguments in("bskiplist_lower_bound", nodes, control);
  const Tensor keys = in.keys("keys", keys_in);
  in.check_control();
  const int64_t n = keys.size(0);
  const Tensor found_keys = in.zero_keys(n), values = in.result({n}), found = in.result({n}, ScalarType::Bool);
  index_functions(in.key_words)
      .lower_bound_batch(in.arena(), n, data<int64_t>(keys), mutable_data<int64_t>(found_keys),
                         mutable_data<int64_t>(values), mutable_data<bool>(found));
  return {found_keys, values, found};
}

Tensor range_count(const Tensor& nodes, const Tensor& control, const Tensor& first_in, const Tensor& last_in) {
  IndexArguments in("bskiplist_range_count", nodes, control);
  const Tensor first = in.keys("first", first_in), last = in.ends(last_in, first);
  in.check_control();
  const Tensor counts = in.result({first.size(0)});
  index_functions(in.key_words)
      .range_count_batch(in.arena(), first.size(0), data<int64_t>(first), data<int64_t>(last),
                         mutable_data<int64_t>(counts));
  return counts;
}

struct Gather {
  const IndexFunctions& functions;
  IndexArena arena;
  int64_t n, key_words, capacity;
  const int64_t *first, *last;
  int64_t *offsets, *keys, *values;

  /// Counts, then copies; false where writers came between the two.
  bool run() const {
    offsets[0] = 0;
    functions.range_count_batch(arena, n, first, last, offsets + 1);
    for (int64_t i = 0; i < n; ++i) offsets[i + 1] += offsets[i];
    std::atomic<bool> whole{true};
    constexpr int64_t search = 16;  // finding a range costs as much as copying so many entries
    const int64_t work = std::min(offsets[n], capacity) + search * n;
    parallel_tiles(n, workers_for(work, 2048), [&](int64_t i, int) {
      if (!copy(i)) whole.store(false, std::memory_order_relaxed);
    });
    return whole.load();
  }

  /// An earlier run may have found more.
  void clear_unused() const {
    const int64_t used = std::min(offsets[n], capacity);
    std::fill(keys + used * key_words, keys + capacity * key_words, 0);
    std::fill(values + used, values + capacity, 0);
  }

  bool copy(int64_t i) const {
    const int64_t wanted = std::min(offsets[i + 1], capacity) - offsets[i];
    if (wanted <= 0) return true;
    int64_t* to = keys + offsets[i] * key_words;
    const int64_t *from = first + i * key_words, *until = last + i * key_words;
    if (functions.range(arena, from, until, wanted, to, values + offsets[i]) != wanted) return false;
    // Nothing may have come behind what was copied, or keys that were there all the time could be missing.
    return offsets[i + 1] > capacity || functions.range_count(arena, to + (wanted - 1) * key_words, until) == 1;
  }
};

std::tuple<Tensor, Tensor, Tensor> gather(const Tensor& nodes, const Tensor& control, const Tensor& first_in,
                                          const Tensor& last_in, int64_t capacity) {
  constexpr const char* op = "bskiplist_gather";
  IndexArguments in(op, nodes, control);
  const Tensor first = in.keys("first", first_in), last = in.ends(last_in, first);
  check(capacity >= 0, op, ": capacity is ", capacity,
        ", must be at least 0; pass the entries there shall be room for");
  in.check_control();
  const int64_t n = first.size(0);
  const Tensor offsets = in.result({n + 1}), keys = in.zero_keys(capacity);
  const Tensor values = zeros_on(nodes, {capacity}, ScalarType::Long);
  const Gather gather{index_functions(in.key_words),
                      in.arena(),
                      n,
                      in.key_words,
                      capacity,
                      data<int64_t>(first),
                      data<int64_t>(last),
                      mutable_data<int64_t>(offsets),
                      mutable_data<int64_t>(keys),
                      mutable_data<int64_t>(values)};
  if (!gather.run()) {
    if (!gather.run() && !gather.run()) {
      const IndexPause pause(in.arena());
      gather.run();
    }
    gather.clear_unused();
  }
  return {offsets, keys, values};
}

Tensor insert(const Tensor& nodes, const Tensor& control, const Tensor& keys_in, const Tensor& values_in, bool assign) {
  IndexArguments in("bskiplist_insert", nodes, control);
  const Tensor keys = in.keys("keys", keys_in), values = in.values(values_in, keys);
  in.check_not_of_index("keys", keys);
  in.check_not_of_index("values", values);
  in.check_control();
  const Tensor status = in.result({keys.size(0)}, ScalarType::Char);
  index_functions(in.key_words)
      .insert_batch(in.arena(), keys.size(0), data<int64_t>(keys), data<int64_t>(values), assign,
                    mutable_data<IndexStatus>(status));
  return status;
}

Tensor erase(const Tensor& nodes, const Tensor& control, const Tensor& keys_in) {
  IndexArguments in("bskiplist_erase", nodes, control);
  const Tensor keys = in.keys("keys", keys_in);
  in.check_not_of_index("keys", keys);
  in.check_control();
  const Tensor status = in.result({keys.size(0)}, ScalarType::Char);
  index_functions(in.key_words)
      .erase_batch(in.arena(), keys.size(0), data<int64_t>(keys), mutable_data<IndexStatus>(status));
  return status;
}

void bulk_load(const Tensor& nodes, const Tensor& control, const Tensor& keys_in, const Tensor& values_in) {
  constexpr const char* op = "bskiplist_bulk_load";
  IndexArguments in(op, nodes, control);
  const Tensor keys = in.keys("keys", keys_in), values = in.values(values_in, keys);
  in.check_not_of_index("keys", keys);
  in.check_not_of_index("values", values);
  in.check_control();
  int64_t bad = 0;
  const BulkLoad outcome = index_functions(in.key_words)
                               .bulk_load(in.arena(), keys.size(0), data<int64_t>(keys), data<int64_t>(values), &bad);
  check(outcome != BulkLoad::not_empty, op, ": the index is in use, must be empty; call bskiplist_init first");
  check(outcome != BulkLoad::not_ascending, op, ": keys is not above the key before it at position ", bad,
        ", must ascend; sort the keys and drop repetitions");
  check(outcome != BulkLoad::full, op, ": nodes has shape ", shape_string(nodes), ", must have room for ", keys.size(0),
        " keys; make a larger index");
}

void validate(const Tensor& nodes, const Tensor& control) {
  constexpr const char* op = "bskiplist_validate";
  const IndexArguments in(op, nodes, control);
  in.check_control();
  // The validator waits for writers, so words of memory that never was an index are looked at first.
  const IndexArena arena = in.arena();
  int64_t inside = arena.control[IndexControl::gate];
  for (int slot = 0; slot < IndexControl::num_slots; ++slot) inside |= *arena.slot_word(slot) % IndexControl::size_unit;
  check(inside == 0, op, ": the index is being written, must be at rest; copy it while no op runs");
  const std::string problem = validate_index(arena, static_cast<int>(arena.control[IndexControl::key_words]));
  check(problem.empty(), op, ": the index is damaged (", problem, "), must be whole; build it again");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("bskiplist_init(Tensor(a!) nodes, Tensor(b!) control, int key_words) -> ()");
  m.def("bskiplist_find(Tensor nodes, Tensor control, Tensor keys) -> (Tensor values, Tensor found)");
  m.def(
      "bskiplist_lower_bound(Tensor nodes, Tensor control, Tensor keys) -> (Tensor found_keys, Tensor values, Tensor "
      "found)");
  m.def("bskiplist_range_count(Tensor nodes, Tensor control, Tensor first, Tensor last) -> Tensor");
  m.def(
      "bskiplist_gather(Tensor nodes, Tensor control, Tensor first, Tensor last, SymInt capacity) -> (Tensor "
      "offsets, Tensor keys, Tensor values)");
  m.def(
      "bskiplist_insert(Tensor(a!) nodes, Tensor(b!) control, Tensor keys, Tensor values, bool assign) -> Tensor "
      "status");
  m.def("bskiplist_erase(Tensor(a!) nodes, Tensor(b!) control, Tensor keys) -> Tensor status");
  m.def("bskiplist_bulk_load(Tensor(a!) nodes, Tensor(b!) control, Tensor keys, Tensor values) -> ()");
  m.def("bskiplist_validate(Tensor nodes, Tensor control) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("bskiplist_init", TORCH_BOX(&init));
  m.impl("bskiplist_find", TORCH_BOX(&find));
  m.impl("bskiplist_lower_bound", TORCH_BOX(&lower_bound));
  m.impl("bskiplist_range_count", TORCH_BOX(&range_count));
  m.impl("bskiplist_gather", TORCH_BOX(&gather));
  m.impl("bskiplist_insert", TORCH_BOX(&insert));
  m.impl("bskiplist_erase", TORCH_BOX(&erase));
  m.impl("bskiplist_bulk_load", TORCH_BOX(&bulk_load));
  m.impl("bskiplist_validate", TORCH_BOX(&validate));
}

}  // namespace anabranch
