// What the whole room agrees on: the order of events, hashes of integers, and who looks after which node.
//
// Events are ordered by (time, event id), both int64; of equal times the larger id is the later one. A batch is given
// in any order of equal keys: entries with equal (time, id) stay in the order of the batch.
//
// Hashes are full-avalanche integer functions of 64 bits, the same on every device: random decisions are hashes of what
// they are about and a seed, never the state of a generator, so they do not depend on threads, batches or devices.
//
// A batch that writes to nodes is shared out by node: a worker walks the whole batch in order and writes to the nodes
// it owns (NodeShare). Each node then sees its events in order, whatever the number of workers, and nobody locks.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

inline constexpr int64_t no_node = -1;   // an entry or slot that holds nothing
inline constexpr int64_t no_event = -1;  // event ids are never negative

/// Whether event a comes strictly before event b.
ANABRANCH_HOST_DEVICE inline bool comes_before(int64_t time_a, int64_t id_a, int64_t time_b, int64_t id_b) {
  return time_a != time_b ? time_a < time_b : id_a < id_b;
}

/// The finaliser of splitmix64: every bit of the result depends on every bit of x.
ANABRANCH_HOST_DEVICE inline uint64_t mixed_bits(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  x ^= x >> 31;
  return x;
}

/// A hash of a sequence of words: chain = chained_hash(chained_hash(seed, a), b).
ANABRANCH_HOST_DEVICE inline uint64_t chained_hash(uint64_t chain, uint64_t word) {
  return mixed_bits(chain + 0x9e3779b97f4a7c15u + mixed_bits(word + 0x9e3779b97f4a7c15u));
}

/// A number in [0, n) from the upper bits of a hash, for 0 < n < 2^32; as even as the hash is.
ANABRANCH_HOST_DEVICE inline int64_t below(uint64_t hash, int64_t n) {
  return static_cast<int64_t>(((hash >> 32) * static_cast<uint64_t>(n)) >> 32);
}

/// A number in [0, 1) of 24 bits: exact as a float, so that a comparison with a float is the same everywhere.
ANABRANCH_HOST_DEVICE inline float unit_interval(uint64_t hash) { return static_cast<float>(hash >> 40) * 0x1p-24f; }

/// The nodes of one of `num_workers` workers.
struct NodeShare {
  int worker, num_workers;
  ANABRANCH_HOST_DEVICE bool owns(int64_t node) const {
    return num_workers == 1 || below(mixed_bits(static_cast<uint64_t>(node)), num_workers) == worker;
  }
};

}  // namespace anabranch
