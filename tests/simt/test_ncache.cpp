// The N-cache's update on the harness and on the CPU against the sequential definition, bit for bit: tables, states and
// counts, for batches with many events a node, self-loops, ties, and slots more and fewer than a warp has lanes.
#include "anabranch/temporal/ncache.cuh"
#include "anabranch/temporal/ncache_cpu.hpp"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

/// Keys, event ids, times and states of some rows of slots.
template <class Bits>
struct Slots {
  std::vector<int64_t> keys, event_ids, times;
  std::vector<Bits> states;

  Slots(int64_t rows, int64_t slots, int64_t state_size)
      : keys(rows * slots, -1),
        event_ids(rows * slots, -1),
        times(rows * slots, -1),
        states(rows * slots * state_size, Bits(0)) {}
  bool operator==(const Slots&) const = default;
};

template <class Bits>
struct Case {
  NCacheLayout layout;
  int64_t nodes, events, state_size;
  NCachePolicy policy;
  Slots<Bits> cache, rows;
  std::vector<int64_t> src, dst, time, event_id;

  Case(int64_t hop1, int64_t hop2, int64_t nodes, int64_t events, int64_t state_size, unsigned seed)
      : layout(NCacheLayout::of(hop1, hop2)),
        nodes(nodes),
        events(events),
        state_size(state_size),
        policy{seed, 0.5f},
        cache(nodes, layout.slots(), state_size),
        rows(2 * events, layout.slots(), state_size) {
    std::mt19937_64 random(seed);
    const auto any = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    for (int64_t e = 0; e < events; ++e) {
      src.push_back(any(nodes)), dst.push_back(e % 5 ? any(nodes) : src.back());
      time.push_back(-3 + e / 4), event_id.push_back((int64_t{1} << 33) + e);
    }
    // Rows hold what a read could have found, often the very node that the event is with.
    for (int64_t row = 0; row < 2 * events; ++row) {
      const int64_t other = row < events ? dst[row] : src[row - events];
      for (int64_t slot = 1; slot <= hop1; ++slot) {
        if (any(4) == 0) continue;
        fill(rows, row * layout.slots() + slot, any(3) ? any(nodes) : other, random);
      }
    }
    for (int64_t at = 0; at < nodes * layout.slots(); ++at) {
      if (any(2)) fill(cache, at, at % layout.slots() ? any(nodes) : at / layout.slots(), random);
    }
  }

  void fill(Slots<Bits>& slots, int64_t at, int64_t key, std::mt19937_64& random) const {
    slots.keys[at] = key, slots.event_ids[at] = static_cast<int64_t>(random() >> 1);
    slots.times[at] = static_cast<int64_t>(random());
    for (int64_t f = 0; f < state_size; ++f) slots.states[at * state_size + f] = static_cast<Bits>(random());
  }

  NCacheTable<Bits> table(Slots<Bits>& slots) const {
    return {
        slots.keys.data(), slots.event_ids.data(), slots.times.data(), slots.states.data(), nodes, state_size, layout};
  }
  NCacheBatch<Bits> batch(const Slots<Bits>& from) const {
    return {src.data(),
            dst.data(),
            time.data(),
            event_id.data(),
            events,
            from.keys.data(),
            from.event_ids.data(),
            from.times.data(),
            from.states.data()};
  }
};

template <class Bits>
void check_case(const Case<Bits>& in) {
  Slots<Bits> expected = in.cache;
  const NCacheStats stats = ncache_update_reference(in.table(expected), in.policy, in.batch(in.rows));
  expect(in.events == 0 || stats.offered[1] == 2 * in.events, "offers of hop 1");

  Slots<Bits> on_cpu = in.cache;
  const NCacheStats cpu_stats = ncache_update_cpu(in.table(on_cpu), in.policy, in.batch(in.rows));
  expect(on_cpu == expected, "the CPU's cache");

  for (const int64_t chunk : {node_warp_chunk, int64_t{14}}) {  // in one launch, and in some
    Guarded<int64_t> keys(in.cache.keys), event_ids(in.cache.event_ids), times(in.cache.times);
    Guarded<Bits> states(in.cache.states);
    Guarded<unsigned long long> counts(std::vector<unsigned long long>(9));
    const NCacheTable<Bits> table{keys.data(), event_ids.data(), times.data(), states.data(),
                                  in.nodes,    in.state_size,    in.layout};
    const int64_t before = simt::num_launches();
    ncache_update_cuda(table, in.policy, in.batch(in.rows), counts.data(), nullptr, chunk);
    expect(simt::num_launches() - before == (2 * in.events + chunk - 1) / chunk, "launches");
    expect(keys.values() == expected.keys && event_ids.values() == expected.event_ids &&
               times.values() == expected.times && states.values() == expected.states,
           "the harness's cache");
    for (int hop = 0; hop < ncache_max_hops; ++hop) {
      const auto at = [&](int column) { return static_cast<int64_t>(counts.data()[3 * hop + column]); };
      expect(at(0) == stats.offered[hop] && at(1) == stats.collisions[hop] && at(2) == stats.replacements[hop],
             "counts");
    }
  }
  for (int hop = 0; hop < ncache_max_hops; ++hop) {
    expect(cpu_stats.offered[hop] == stats.offered[hop] && cpu_stats.collisions[hop] == stats.collisions[hop] &&
               cpu_stats.replacements[hop] == stats.replacements[hop],
           "the CPU's counts");
  }
}

/// Nodes out of range, keys that name none and negative ids: passed over, and everything else as without them.
void check_passed_over() {
  Case<uint32_t> in(4, 3, 6, 12, 2, 9);
  const Case<uint32_t> whole = in;
  in.src[3] = -1, in.dst[4] = 6, in.event_id[5] = -2;
  Case<uint32_t> without = whole;
  for (const int64_t e : {5, 4, 3}) {
    for (auto* ids : {&without.src, &without.dst, &without.time, &without.event_id}) ids->erase(ids->begin() + e);
    for (const int64_t row : {whole.events + e, e}) {  // rows of dst lie behind all those of src
      const int64_t first = (row < whole.events ? row : row - (whole.events - without.events)) * in.layout.slots();
      for (auto* ids : {&without.rows.keys, &without.rows.event_ids, &without.rows.times}) {
        ids->erase(ids->begin() + first, ids->begin() + first + in.layout.slots());
      }
      auto& states = without.rows.states;
      states.erase(states.begin() + 2 * first, states.begin() + 2 * (first + in.layout.slots()));
    }
    --without.events;
  }
  in.rows.keys[1] = 6;  // names no node
  without.rows.keys[1] = -1;
  Slots<uint32_t> given = in.cache, expected = without.cache;
  std::vector<unsigned long long> counts(9);
  ncache_update_cuda(in.table(given), in.policy, in.batch(in.rows), counts.data(), nullptr);
  ncache_update_reference(without.table(expected), without.policy, without.batch(without.rows));
  expect(given == expected, "events that name no node");
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_case(Case<uint32_t>(5, 3, 7, 40, 3, 1));
    check_case(Case<uint16_t>(33, 40, 3, 12, 1, 2));
    check_case(Case<uint64_t>(4, 0, 50, 30, 2, 3));
    check_case(Case<uint32_t>(1, 1, 1, 9, 4, 4));
    check_case(Case<uint32_t>(32, 16, 9, 0, 4, 5));
    check_passed_over();
  });
  std::puts("ncache: ok");
}
