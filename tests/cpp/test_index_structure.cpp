// The structure of the index, seen from inside: the shared-lock way to read, nodes that no parent names, the gate that
// writers pass, and a validator that finds each kind of damage.
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

#include "index_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;
using namespace anabranch::index_detail;
using Index = BSkipList<int64_t>;
using Tree = index_detail::Tree<compiled_cpu_isa, 1>;
using Node = Tree::Node;

Tree tree_of(const Index& index) { return Tree{index.arena()}; }

void expect_valid(const Index& index) {
  const std::string problem = index.validate();
  expect(problem.empty(), "validate: " + problem);
}

bool find_shared(const Tree& tree, int64_t key, uint64_t& value) {
  bool found = false;
  tree.try_read<ReadMode::shared>(
      {key},
      [&](const Node& leaf, uint64_t) {
        const int i = leaf.lower_bound({key});
        found = leaf.holds(i, {key});
        if (found) value = leaf.value(i);
      },
      [](const Node&, uint32_t) {});
  return found;
}

void check_shared_reads() {
  context = "shared reads";
  Index index;
  for (int64_t key = 0; key < 20000; ++key) index.insert(2 * key, key);
  for (int64_t key = -1; key < 40001; ++key) {
    uint64_t value = 0;
    const bool there = key >= 0 && key < 40000 && key % 2 == 0;
    expect(find_shared(tree_of(index), key, value) == there, "finds what is there");
    expect(!there || value == static_cast<uint64_t>(key / 2), "finds its value");
  }
  expect_valid(index);  // and no lock is left behind

  // A leaf that changes whenever it is read without a lock is read with one in the end.
  int visits = 0;
  uint64_t value = 0;
  tree_of(index).read_leaf({100}, [&](const Node& leaf, uint64_t) {
    value = leaf.value(leaf.lower_bound({100}));
    if (++visits <= optimistic_attempts) index.insert_or_assign(100, 1000 + visits);
  });
  expect(visits == optimistic_attempts + 1, "the last attempt takes the lock");
  expect(value == 1000 + optimistic_attempts, "and sees the last value");
  expect_valid(index);
}

/// A batch that changes a leaf while it is read makes the reader look again; one that changes nothing does not.
void check_batches_and_readers() {
  context = "batches beside a reader";
  Index index;
  for (int64_t key = 0; key < 2000; ++key) index.insert(2 * key, 1);
  const std::vector<int64_t> there{100, 102, 102}, absent{101, 103, 103};
  const std::vector<uint64_t> values{7, 8, 9};
  std::vector<IndexStatus> status(3);
  const auto visits = [&](auto&& write) {
    int count = 0;
    tree_of(index).read_leaf({100}, [&](const Node&, uint64_t) {
      if (++count == 1) write();
    });
    return count;
  };
  expect(visits([&] { index.insert(there, values, status, false); }) == 1, "insert of keys that are there");
  expect(visits([&] { index.erase(absent, status); }) == 1, "erase of keys that are not");
  expect(visits([&] { index.insert(there, values, status, true); }) == 2, "assignment");
  expect(index.find(100) == 7 && index.find(102) == 9, "the last one's value stays");
  expect(visits([&] { index.insert(absent, values, status, false); }) == 2, "insert");
  expect(index.find(101) == 7 && index.find(103) == 8, "the first one is inserted");
  expect(visits([&] { index.erase(absent, status); }) == 2, "erase");
  expect_valid(index);
}

/// Writers that walk past unnamed nodes name them, so that such a row does not become the way for ever.
void check_walkers_name() {
  context = "naming";
  constexpr int64_t n = 30000;
  Index index;
  for (int64_t key = 0; key < n; ++key) index.insert(key, key);
  forget_entries(index, 100);
  const auto steps = [&](int64_t key) {
    int count = 0;
    tree_of(index).try_read<ReadMode::shared>(
        {key}, [](const Node&, uint64_t) {}, [&](const Node&, uint32_t) { ++count; });
    return count;
  };
  expect(steps(n) > 20, "a long way at first");
  for (int64_t key = n; key < n + 1000; ++key) index.insert(key, key);
  expect(steps(n + 1000) <= 3, "then the levels alone");
  for (int64_t key = 0; key < n + 1000; ++key) expect(index.find(key) == key, "every key is found");
  expect_valid(index);
}

void check_unnamed_nodes() {
  for (const int percent : {20, 90, 100}) {
    context = "nodes without a parent, " + std::to_string(percent) + " %";
    constexpr int64_t n = 30000;
    Index index;
    Twin twin(index);
    for (int64_t key = 0; key < n; ++key) twin.insert(4 * key, key, false);
    expect(tree_of(index).node(index_root).level() == 2, "three levels");
    forget_entries(index, percent);
    twin.check_all();
    std::vector<int64_t> keys(400);
    const auto draw = [&] {
      for (int64_t& key : keys) key = random_int(4 * n + 2) - 1;
    };
    draw();
    for (const int64_t key : keys) {
      twin.look(key);
      uint64_t value;
      expect(find_shared(tree_of(index), key, value) == index.contains(key), "shared reads");
      const int64_t before = std::min(key / 4 * 4, 4 * n - 4);
      IndexKey<1> found;
      const bool any = Scan<compiled_cpu_isa, 1>::last_until(tree_of(index), {key}, found, value);
      expect(any == (key >= 0) && (!any || found[0] == before), "last_until");
    }
    twin.look_batch(keys);
    for (int round = 0; round < 8; ++round) {
      draw();
      for (const int64_t key : keys) twin.insert(key, random_int(1000), round % 2);
      draw();
      twin.insert_batch(keys, round % 2);
      draw();
      for (const int64_t key : keys) twin.erase(key);
      draw();
      twin.erase_batch(keys);
      twin.check_all();
    }
    // All go, from the left, the right, and anywhere.
    while (!twin.map.empty()) {
      const int64_t from = random_int(3);
      auto at = from == 0   ? twin.map.begin()
                : from == 1 ? std::prev(twin.map.end())
                            : twin.map.lower_bound(random_int(twin.map.rbegin()->first + 1));
      twin.erase(at->first);
      if (twin.map.size() % 10000 == 0) twin.check_all();
    }
    for (const int64_t key : keys) twin.insert(key, key, true);
    twin.check_all();
  }
}

void check_pause() {
  context = "pause";
  Index index;
  index.insert(1, 1);
  std::atomic<int> done{0};
  std::vector<std::thread> writers;
  {
    const IndexPause pause(index.arena()), another(index.arena());
    writers.emplace_back([&] { index.insert(2, 2), ++done; });
    writers.emplace_back([&] { index.erase(1), ++done; });
    writers.emplace_back([&] {
      const std::vector<int64_t> keys{3, 4};
      const std::vector<uint64_t> values{3, 4};
      std::vector<IndexStatus> status(2);
      index.insert(keys, values, status), ++done;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    expect(done == 0 && index.size() == 1 && index.find(1) == 1 && !index.contains(2), "writers wait, readers do not");
  }
  for (std::thread& writer : writers) writer.join();
  expect(index.size() == 3 && !index.contains(1) && index.find(4) == 4, "then they write");

  {
    const IndexPause pause(index.arena());
    const IndexWriter reader(index.arena(), IndexWriter::Reads{});  // or whoever pauses could not read by locks
  }
  std::atomic<bool> read{false};
  std::thread reader;
  {
    const IndexPause pause(index.arena(), true);
    reader = std::thread([&] {
      const IndexWriter guest(index.arena(), IndexWriter::Reads{});
      read = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    expect(!read, "readers that lock wait for a pause that asks them to");
  }
  reader.join();

  // A pause waits for the writers that are inside.
  std::atomic<bool> inside{false}, leave{false}, left{false};
  std::thread writer([&] {
    IndexWriter guest(index.arena());
    inside = true;
    while (!leave) std::this_thread::yield();
    left = true;
  });
  while (!inside) std::this_thread::yield();
  std::thread releaser([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    leave = true;
  });
  {
    const IndexPause pause(index.arena());
    expect(left, "a pause begins when the last writer has left");
  }
  writer.join();
  releaser.join();
  expect_valid(index);
}

/// Does `damage` to an index of three levels and expects the validator to say so.
template <class F>
void check_damage(const std::string& what, const std::string& message, F&& damage) {
  context = "validator, " + what;
  Index index;
  for (int64_t key = 0; key < 30000; ++key) index.insert(2 * key, key);
  for (int64_t key = 0; key < 300; ++key) index.erase(2 * key);  // some nodes are free
  expect_valid(index);
  const Tree tree = tree_of(index);
  const Node root = tree.node(index_root), inner = tree.node(root.child(1)), leaf = tree.node(inner.child(2));
  damage(index.arena(), root, inner, leaf);
  const std::string problem = index.validate();
  expect(problem.find(message) != std::string::npos, "says '" + problem + "' and not '" + message + "'");
}

void check_validator() {
  using Arena = const IndexArena&;
  using N = const Node&;
  constexpr auto out_of_order = "is out of order";
  check_damage("swapped keys", out_of_order, [](Arena, N, N, N leaf) {
    std::swap(leaf.words[IndexNode<1>::columns + 3], leaf.words[IndexNode<1>::columns + 4]);
  });
  check_damage("a key twice", out_of_order, [](Arena, N, N, N leaf) { leaf.set_key(true, 5, leaf.key(true, 4)); });
  check_damage("a key left of its leaf", out_of_order, [](Arena, N, N, N leaf) { leaf.set_key(true, 0, {-1}); });
  check_damage("a key right of its leaf", out_of_order,
               [](Arena, N, N, N leaf) { leaf.set_key(true, leaf.count() - 1, leaf.high()); });
  check_damage("swapped entries", out_of_order, [](Arena, N, N inner, N) {
    std::swap(inner.words[IndexNode<1>::columns + 3], inner.words[IndexNode<1>::columns + 4]);
  });
  check_damage("count less", "but there are", [](Arena, N, N, N leaf) { leaf.set_count(leaf.count() - 1); });
  check_damage("count negative", "has -1 entries", [](Arena, N, N, N leaf) { leaf.set_count(-1); });
  check_damage("count beyond the node", "has 61 entries", [](Arena, N, N, N leaf) { leaf.set_count(61); });
  check_damage("inner node empty", "has 0 entries", [](Arena, N, N inner, N) { inner.set_count(0); });
  check_damage("level", "on level 0", [](Arena, N, N, N leaf) { leaf.set_level(1); });
  check_damage("level of the root", "root: its level", [](Arena, N root, N, N) { root.set_level(index_max_levels); });
  check_damage("root's neighbour", "root: it has a right neighbour",
               [](Arena, N root, N, N leaf) { root.set_next(leaf.id); });
  check_damage("lost link", "a parent names a node that its left neighbours do not reach",
               [](Arena, N, N, N leaf) { leaf.set_next(0); });
  check_damage("lost link between inner nodes", "do not reach", [](Arena, N, N inner, N) { inner.set_next(0); });
  check_damage("skipped node", "do not reach",
               [](Arena arena, N, N, N leaf) { leaf.set_next(Node(arena, leaf.next()).next()); });
  check_damage("link back", "in two places", [](Arena, N, N inner, N leaf) { leaf.set_next(inner.child(2)); });
  check_damage("link to nowhere", "was never taken", [](Arena arena, N, N, N leaf) {
    leaf.set_next(static_cast<uint32_t>(arena.control[IndexControl::used]));
  });
  check_damage("border of a leaf", "names another first key",
               [](Arena, N, N, N leaf) { leaf.set_high({leaf.high()[0] - 1}); });
  check_damage("border in the parent", "names another first key",
               [](Arena, N, N inner, N) { inner.set_key(false, 2, {inner.key(false, 2)[0] - 1}); });
  check_damage("first key of an inner node", "first key is not its border",
               [](Arena, N, N inner, N) { inner.set_key(false, 0, {inner.key(false, 0)[0] + 1}); });
  check_damage("leaked node", "nothing leads to it", [](Arena arena, N, N, N) { arena.take_node(); });
  check_damage("free node in use", "free and in use", [](Arena arena, N, N, N leaf) {
    // As give_back_node() would, but for the leaf's link.
    const auto id = static_cast<int64_t>(leaf.id);
    arena.control[IndexControl::free_head] = arena.control[IndexControl::free_head] >> 32 << 32 | id;
  });
  check_damage("writer's lock", "is locked", [](Arena, N, N, N leaf) { VersionLock::lock(leaf.lock()); });
  check_damage("reader's lock", "is locked", [](Arena, N, N inner, N) { VersionLock::lock_shared(inner.lock()); });
  check_damage("size", "size is 29701, but there are 29700 keys",
               [](Arena arena, N, N, N) { *arena.slot_word(3) += IndexControl::size_unit; });
  check_damage("used nodes", "out of range",
               [](Arena arena, N, N, N) { arena.control[IndexControl::used] = arena.capacity() + 1; });
}

}  // namespace

int main() {
  alarm(60);  // a search that never ends is a failure, too
  check_shared_reads();
  check_batches_and_readers();
  check_walkers_name();
  check_unnamed_nodes();
  check_pause();
  check_validator();
  std::puts("index structure: ok");
}
