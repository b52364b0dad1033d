// The memory of an index: a view of its two arrays, nodes taken and given back, and the gate that writers pass.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

#include "anabranch/core/check.hpp"
#include "anabranch/core/memory.hpp"
#include "anabranch/index/fork.hpp"
#include "anabranch/index/layout.hpp"
#include "anabranch/index/version_lock.hpp"

namespace anabranch {

/// The two arrays of an index, wherever they lie. Both are aligned to 64 bytes.
struct IndexArena {
  int64_t* control = nullptr;
  int64_t* nodes = nullptr;

  [[gnu::always_inline]] int64_t* node(uint32_t id) const {
    return nodes + static_cast<int64_t>(id) * index_node_words;
  }
  [[gnu::always_inline]] int64_t capacity() const { return control[IndexControl::capacity]; }

  /// Makes an empty index of zeroed memory with room for `capacity` nodes.
  void format(int key_words, int64_t capacity) const {
    control[IndexControl::key_words] = key_words;
    control[IndexControl::node_words] = index_node_words;
    control[IndexControl::capacity] = capacity;
    control[IndexControl::used] = index_root + 1;
    control[IndexControl::format] = IndexControl::magic;
  }

  /// A node for the caller alone, or 0 where there is no more memory. Its words are as its last owner left them.
  [[gnu::always_inline]] uint32_t take_node() const {
    auto* head = reinterpret_cast<uint64_t*>(control + IndexControl::free_head);
    uint64_t seen = __atomic_load_n(head, __ATOMIC_ACQUIRE);
    while (static_cast<uint32_t>(seen) != 0) {
      if (static_cast<uint32_t>(seen) >= capacity()) [[unlikely]]
        return 0;  // damaged
      // The node may be taken by another meanwhile; what is read here is then thrown away with the exchange that fails.
      const uint32_t below = index_detail::read(next_of(static_cast<uint32_t>(seen)));
      ANABRANCH_INDEX_YIELD(taking);
      const uint64_t then = (((seen >> 32) + 1) << 32) | below;
      if (__atomic_compare_exchange_n(head, &seen, then, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return static_cast<uint32_t>(seen);
    }
    int64_t* used = control + IndexControl::used;
    for (int64_t first = __atomic_load_n(used, __ATOMIC_RELAXED); first < capacity();) {
      if (__atomic_compare_exchange_n(used, &first, first + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return static_cast<uint32_t>(first);
    }
    return 0;
  }

  [[gnu::always_inline]] void give_back_node(uint32_t id) const {
    auto* head = reinterpret_cast<uint64_t*>(control + IndexControl::free_head);
    uint64_t seen = __atomic_load_n(head, __ATOMIC_RELAXED), then;
    do {
      index_detail::write(next_of(id), static_cast<uint32_t>(seen));
      then = (((seen >> 32) + 1) << 32) | id;
    } while (!__atomic_compare_exchange_n(head, &seen, then, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  }

  /// Keys in the index. Exact when no writer is inside.
  [[gnu::always_inline]] int64_t size() const {
    int64_t sum = 0;
    for (int slot = 0; slot < IndexControl::num_slots; ++slot)
      sum += __atomic_load_n(slot_word(slot), __ATOMIC_RELAXED);
    return sum >> 16;  // the writers that are inside fall off below
  }

  [[gnu::always_inline]] int64_t* slot_word(int slot) const {
    return control + IndexControl::slots + slot * IndexControl::slot_words;
  }

 private:
  [[gnu::always_inline]] uint32_t* next_of(uint32_t id) const {
    return reinterpret_cast<uint32_t*>(node(id) + IndexNode<1>::next);
  }
};

/// A writer is inside for one operation, or for one batch. Leaving adds to the size by the same instruction.
class IndexWriter {
 public:
  [[gnu::always_inline]] explicit IndexWriter(const IndexArena& arena) : IndexWriter(arena, 1) {}

  /// For one that only reads, but takes locks. A pause for writers lets it in: it may be the one who made it.
  struct Reads {};
  IndexWriter(const IndexArena& arena, Reads) : IndexWriter(arena, IndexControl::readers_unit) {}

  IndexWriter(const IndexWriter&) = delete;
  IndexWriter& operator=(const IndexWriter&) = delete;
  [[gnu::always_inline]] ~IndexWriter() {
    __atomic_fetch_add(word_, added_ * IndexControl::size_unit - 1, __ATOMIC_RELEASE);
  }

  [[gnu::always_inline]] void add_to_size(int64_t keys) { added_ += keys; }

 private:
  /// Enters while the gate is less than `closed`.
  [[gnu::always_inline]] IndexWriter(const IndexArena& arena, int64_t closed) : word_(arena.slot_word(thread_slot())) {
    int64_t* gate = arena.control + IndexControl::gate;
    for (index_detail::Spin spin;; spin.wait()) {
      __atomic_fetch_add(word_, 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(gate, __ATOMIC_SEQ_CST) < closed) return;
      __atomic_fetch_sub(word_, 1, __ATOMIC_RELEASE);
    }
  }

  /// Threads take slots in turn; two of one slot only share a cache line.
  [[gnu::always_inline]] static int thread_slot() {
    static std::atomic<unsigned> threads{0};
    thread_local const int slot =
        static_cast<int>(threads.fetch_add(1, std::memory_order_relaxed) % IndexControl::num_slots);
    return slot;
  }

  int64_t* word_;
  int64_t added_ = 0;
};

/// No writer is inside while this lives: for snapshots and saving; and, where `readers_too`, nobody who holds a lock.
/// Must not be made by a thread that is a writer itself, nor read by locks where `readers_too`.
class IndexPause {
 public:
  explicit IndexPause(const IndexArena& arena, bool readers_too = false)
      : arena_(arena), unit_(readers_too ? IndexControl::readers_unit : 1) {
    __atomic_fetch_add(gate(), unit_, __ATOMIC_SEQ_CST);
    for (int slot = 0; slot < IndexControl::num_slots; ++slot) {
      for (index_detail::Spin spin;
           __atomic_load_n(arena_.slot_word(slot), __ATOMIC_SEQ_CST) & (IndexControl::size_unit - 1);)
        spin.wait();
    }
  }
  IndexPause(const IndexPause&) = delete;
  IndexPause& operator=(const IndexPause&) = delete;
  ~IndexPause() { __atomic_fetch_sub(gate(), unit_, __ATOMIC_RELEASE); }

 private:
  int64_t* gate() const { return arena_.control + IndexControl::gate; }
  IndexArena arena_;
  int64_t unit_;
};

/// Memory of its own for an index that grows: addresses are reserved once, pages come when they are touched. So nodes
/// never move, and threads that read need not know that the index has grown. A fork leaves both copies valid
/// (fork.hpp).
class OwnedIndexArena {
 public:
  /// Room for `max_nodes` nodes, or for as many as the system lets one reserve. Throws std::bad_alloc where it is none.
  explicit OwnedIndexArena(int key_words, int64_t max_nodes = default_max_nodes) {
    check(max_nodes >= 3 && max_nodes <= int64_t{1} << 32, "BSkipList: max_nodes is ", max_nodes,
          ", must be from 3 to 2^32; give it room for some nodes of 1 KiB");
    constexpr std::size_t front = (IndexControl::words * 8 + 4095) / 4096 * 4096;
    for (;; max_nodes /= 2) {
      bytes_ = front + static_cast<std::size_t>(max_nodes) * index_node_words * 8 + huge_page_bytes;
      memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory_ != MAP_FAILED) break;
      if (max_nodes < 1024) throw std::bad_alloc();
    }
    // The nodes begin a huge page, so that their first huge page is one.
    const auto begin = reinterpret_cast<uintptr_t>(memory_) + front;
    auto* nodes = reinterpret_cast<int64_t*>((begin + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes);
    arena_ = {static_cast<int64_t*>(memory_), nodes};
    advise_huge_pages(nodes, static_cast<std::size_t>(max_nodes) * index_node_words * 8);
    arena_.format(key_words, max_nodes);
    index_detail::ForkRegistry::instance().add(arena_.control);
  }
  OwnedIndexArena(const OwnedIndexArena&) = delete;
  OwnedIndexArena& operator=(const OwnedIndexArena&) = delete;
  ~OwnedIndexArena() {
    index_detail::ForkRegistry::instance().remove(arena_.control);
    munmap(memory_, bytes_);
  }

  const IndexArena& view() const { return arena_; }

  /// 128 GB of addresses: three to five thousand million keys.
  static constexpr int64_t default_max_nodes = int64_t{1} << 27;

 private:
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
  IndexArena arena_;
};

}  // namespace anabranch
