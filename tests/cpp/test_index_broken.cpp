// Memory that is no index, or no longer: operations end, leave the two arrays by no link, and hold no lock behind them.
// The arena lies between pages that nobody may touch.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "index_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;
using namespace anabranch::index_detail;

#if defined(__SANITIZE_THREAD__)
constexpr int rounds = 3;
#else
constexpr int rounds = 20;
#endif

/// An index of keys 0, 2, 4... whose last node ends where memory ends.
template <int key_words>
class Guarded {
 public:
  using Tree = index_detail::Tree<compiled_cpu_isa, key_words>;
  using Batch = index_detail::Batch<compiled_cpu_isa, key_words>;
  using Scan = index_detail::Scan<compiled_cpu_isa, key_words>;
  using Node = typename Tree::Node;
  using Key = IndexKey<key_words>;
  static constexpr int64_t capacity = 160;

  explicit Guarded(int64_t keys) : keys_(keys) {
    constexpr size_t page = 4096;
    bytes_ = capacity * index_node_words * 8 + 2 * page;
    auto* begin = static_cast<char*>(mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    expect(begin != MAP_FAILED && mprotect(begin + page, bytes_ - 2 * page, PROT_READ | PROT_WRITE) == 0, "memory");
    memory_ = begin;
    arena = {control_.data(), reinterpret_cast<int64_t*>(begin + page)};
    arena.format(key_words, capacity);
    for (int64_t i = 0; i < keys; ++i) tree().insert(key(2 * i), i, false);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, bytes_); }

  Tree tree() const { return Tree{arena}; }
  static Key key(int64_t word) {
    Key key{};
    key[0] = word;
    return key;
  }
  Node node(int64_t id) const { return tree().node(static_cast<uint32_t>(id)); }
  Node leaf(int i) const {
    for (int64_t id = index_root; id < arena.control[IndexControl::used]; ++id) {
      if (node(id).level() == 0 && i-- == 0) return node(id);
    }
    return {};
  }
  Node last() const { return node(capacity - 1); }

  /// Every operation, one by one and in batches, reads under a pause too. What they answer is not looked at.
  void use() const {
    const int64_t n = 2 * keys_ + 20;
    std::vector<int64_t> keys(n * key_words), found_keys(n * key_words), values(n), counts(n);
    for (int64_t i = 0; i < n; ++i) keys[i * key_words] = i - 10;
    std::vector<int64_t> last = keys;
    for (int64_t i = 0; i < n; ++i) last[i * key_words] += 200;
    bool found[2048];
    expect(n <= std::ssize(found), "room for a flag a key");
    std::vector<IndexStatus> status(n);
    const auto read = [&] {
      Batch::find(tree(), n, keys.data(), values.data(), found);
      Batch::lower_bound(tree(), n, keys.data(), found_keys.data(), values.data(), found);
      Batch::range_count(tree(), n, keys.data(), last.data(), counts.data());
      Scan::range(tree(), least_key<key_words>(), greatest_key<key_words>(), n, found_keys.data(), values.data());
      for (int64_t i = 0; i < n; i += 7) {
        uint64_t value;
        Key at;
        tree().find(key(keys[i * key_words]), value);
        Scan::last_until(tree(), key(keys[i * key_words]), at, value);
      }
    };
    read();
    {
      const IndexPause pause(arena);
      read();
    }
    for (int64_t i = 0; i < n; i += 5) tree().insert(key(i), i, i % 2);
    Batch::insert(tree(), n, keys.data(), values.data(), true, status.data());
    uint64_t value;
    for (int64_t i = 0; i < n; i += 3) tree().erase(key(i), value);
    Batch::erase(tree(), n, keys.data(), status.data());
    Batch::insert(tree(), n, keys.data(), values.data(), false, status.data());
    for (int64_t id = index_root; id < capacity; ++id)
      expect((*node(id).lock() & ~VersionLock::version_mask) == 0, "a lock is left behind");
    Validator<compiled_cpu_isa, key_words>::check(tree());
  }

  IndexArena arena;

 private:
  int64_t keys_;
  void* memory_;
  size_t bytes_;
  alignas(64) std::array<int64_t, IndexControl::words> control_{};
};

template <int key_words>
void check_damage() {
  using Memory = Guarded<key_words>;
  using Layout = IndexNode<key_words>;
  using Node = typename Memory::Node;
  constexpr int64_t n = rounds < 20 ? 550 : 1000;
  const auto damaged = [](const char* what, auto&& damage) {
    context = std::string(what) + ", keys of " + std::to_string(key_words);
    const Memory memory(n);
    damage(memory);
    memory.use();
  };
  damaged("nothing", [](const Memory&) {});
  damaged("a free node past the end", [](const Memory& memory) {
    uint64_t value;
    for (int64_t i = n / 4; i < n / 2; ++i) memory.tree().erase(Memory::key(2 * i), value);
    const auto free = static_cast<uint32_t>(memory.arena.control[IndexControl::free_head]);
    expect(free != 0, "a node is free");
    memory.node(free).set_next(uint32_t{1} << 31);
  });
  for (int i = 0; i < 8; ++i) {
    damaged("a leaf in use is free",
            [i](const Memory& memory) { memory.arena.control[IndexControl::free_head] = memory.leaf(i).id; });
  }
  damaged("the root is free", [](const Memory& memory) { memory.arena.control[IndexControl::free_head] = index_root; });
  damaged("leaves in a ring", [](const Memory& memory) {
    const Node a = memory.leaf(5), b = memory.leaf(6);
    a.set_next(b.id), b.set_next(a.id);
    a.set_high(Memory::key(-5)), b.set_high(Memory::key(-5));
  });
  damaged("a leaf beside itself", [](const Memory& memory) {
    memory.leaf(5).set_next(memory.leaf(5).id);
    memory.leaf(5).set_high(Memory::key(-5));
  });
  damaged("a leaf beside no node", [](const Memory& memory) {
    memory.leaf(5).set_next(uint32_t{1} << 31);
    memory.leaf(5).set_high(Memory::key(-5));
  });
  damaged("children past the end", [](const Memory& memory) {
    const Node root = memory.node(index_root);
    for (int i = 0; i < root.count(); i += 2) root.set_child(i, uint32_t{1} << 31);
  });
  damaged("a root below itself", [](const Memory& memory) { memory.node(index_root).set_child(1, index_root); });
  damaged("a leaf that says it is none", [](const Memory& memory) {
    for (int i = 3; i < 6; ++i) {
      memory.leaf(i).set_level(1);
      memory.leaf(i).set_count(Layout::inner_capacity);
    }
  });
  // Its key columns full of keys that are sought, and links back to itself, at the end of memory: a search that gives
  // up there must not read values beyond it.
  damaged("an inner node without a way down", [](const Memory& memory) {
    const Node node = memory.last(), root = memory.node(index_root);
    node.set_level(1);
    node.set_count(Layout::inner_capacity);
    for (int i = 0; i < Layout::inner_capacity; ++i) {
      node.set_key(false, i, Memory::key(2 * i));
      node.set_child(i, node.id);
    }
    for (int i = 0; i < root.count(); ++i) root.set_child(i, node.id);
  });
  damaged("a right neighbour that is no leaf", [](const Memory& memory) {
    const Node node = memory.last();
    node.set_level(1);
    node.set_count(Layout::inner_capacity);
    for (int i = 0; i < Layout::inner_capacity; ++i) node.set_key(false, i, Memory::key(2 * i));
    memory.leaf(0).set_next(node.id);
    memory.leaf(0).set_high(Memory::key(-5));
  });
}

/// Random words in headers, links and keys, but no lock: that would be waited for.
template <int key_words>
void check_random_damage(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    context = "random damage " + std::to_string(round) + ", keys of " + std::to_string(key_words);
    const Guarded<key_words> memory(400);
    const int64_t used = memory.arena.control[IndexControl::used];
    for (int64_t i = 1 + random_int(40); i-- > 0;) {
      const auto node = memory.node(1 + random_int(used - 1));
      const int64_t kind = random_int(8), number = random_int(used + 2);
      if (kind == 0) node.set_next(static_cast<uint32_t>(number));
      if (kind == 1) node.set_high(memory.key(random_int(900)));
      if (kind == 2) node.set_level(static_cast<int>(random_int(3)));
      if (kind == 3) node.set_count(static_cast<int>(random_int(100)) - 5);
      if (kind == 4) memory.arena.control[IndexControl::free_head] = std::min(number, used - 1);
      if (kind > 4) node.words[1 + random_int(index_node_words - 1)] = kind == 5 ? random_word() : number;
    }
    memory.use();
  }
}

}  // namespace

int main() {
  alarm(60);  // an operation that never ends is a failure, too
  check_damage<1>();
  check_damage<2>();
  check_random_damage<1>(2 * rounds);
  check_random_damage<2>(rounds);
  std::puts("index broken: ok");
}
