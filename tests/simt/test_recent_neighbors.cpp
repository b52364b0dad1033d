// The recent neighbours' kernels on the harness, word for word against the definition and the CPU kernels: plain and
// causal rows, rows longer than a warp, every direction, ties, self-loops, late events, nodes out of range, launches
// that continue one another.
#include "anabranch/temporal/recent_neighbors.cuh"
#include "anabranch/temporal/recent_neighbors_cpu.hpp"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

using Words = std::vector<int64_t>;

constexpr int64_t kNodes = 9, kPerEvent = 3;

/// A state in memory of its own.
struct State {
  Guarded<int64_t> words, latest{1}, num_events{1};
  RecentRows rows;

  State(int64_t k, int64_t capacity)
      : words(kNodes * RecentRows::words_for(capacity)), rows{words.data(), kNodes, k, capacity} {
    recent_clear_cuda(rows, latest.data(), num_events.data(), nullptr);
  }
  Words all() const {
    Words values = words.values();
    values.push_back(latest.values()[0]);
    values.push_back(num_events.values()[0]);
    return values;
  }
};

struct Results {
  Guarded<int64_t> neighbors, times, event_ids;
  explicit Results(int64_t words) : neighbors(words), times(words), event_ids(words) {}
  RecentResults pointers() { return {neighbors.data(), times.data(), event_ids.data()}; }
  bool operator==(const Results& other) const {
    return neighbors.values() == other.neighbors.values() && times.values() == other.times.values() &&
           event_ids.values() == other.event_ids.values();
  }
};

/// Events among few nodes with few times, so that ties, self-loops and repetitions are many.
struct Batch {
  Guarded<int64_t> src, dst, time, event_id, queries;

  Batch(int64_t size, int64_t first_time, bool late, std::mt19937& random)
      : src(numbers(size, kNodes, random)),
        dst(numbers(size, kNodes, random)),
        time(times(size, first_time, late, random)),
        event_id(numbers(size, 1000, random)),
        queries(numbers(size * kPerEvent, kNodes, random)) {}

  RecentEvents events(State& state, bool numbered, EdgeDirection direction) {
    return {src.data(),
            dst.data(),
            time.data(),
            numbered ? nullptr : event_id.data(),
            src.size(),
            state.latest.data(),
            state.num_events.data(),
            direction};
  }
  static Words numbers(int64_t size, int64_t limit, std::mt19937& random) {
    Words values(size);
    for (int64_t& value : values) value = static_cast<int64_t>(random() % limit);
    return values;
  }
  static Words times(int64_t size, int64_t first, bool late, std::mt19937& random) {
    Words values = numbers(size, 4, random);
    if (!late) std::sort(values.begin(), values.end());
    for (int64_t& value : values) value += first;
    return values;
  }
};

void check_stream(int64_t k, bool causal, bool late, EdgeDirection direction) {
  std::mt19937 random(static_cast<unsigned>(7 * k + causal));
  const int64_t capacity = causal ? 2 * k : k;
  State gpu(k, capacity), parts(k, capacity), definition(k, capacity), cpu(k, capacity);
  expect(gpu.all() == definition.all(), "cleared");
  for (int64_t i = 0; i < (k < 20 ? 0 : 70 * kNodes); ++i) {  // so that long rows are full
    for (State* state : {&gpu, &parts, &definition, &cpu}) {
      recent_insert_reference(state->rows, i % kNodes, {i % 7, i / 30 - 50, i});
    }
  }
  for (const int64_t size : {1, 14, 0, 23}) {
    Batch batch(size, size - 20, late, random);  // negative times at first
    const bool numbered = size == 14;
    const auto events = [&](State& state) { return batch.events(state, numbered, direction); };
    const int64_t words = size * kPerEvent * k;
    Results found(words), wanted(words), found_cpu(words);
    recent_batch_reference(definition.rows, events(definition), batch.queries.data(), kPerEvent, causal,
                           wanted.pointers());
    Guarded<int64_t> numbers(numbered ? size : 0);
    recent_batch_cuda(gpu.rows, events(gpu), batch.queries.data(), kPerEvent, causal, found.pointers(), numbers.data(),
                      nullptr);
    recent_batch_cpu(cpu.rows, events(cpu), batch.queries.data(), kPerEvent, causal, found_cpu.pointers());
    expect(found == wanted && found_cpu == wanted, "lists");
    expect(gpu.all() == definition.all() && cpu.all() == definition.all(), "state");

    const RecentEvents in_parts = detail::recent_advance_cuda(parts.rows, events(parts), numbers.data(), nullptr);
    if (causal) {
      Results found_in_parts(words);
      detail::recent_walk_cuda(
          detail::RecentWalk<true>{parts.rows, in_parts, batch.queries.data(), kPerEvent, found_in_parts.pointers(), 0},
          12, nullptr);
      expect(found_in_parts == wanted, "lists of several launches");
    } else {
      detail::recent_walk_cuda(detail::RecentWalk<false>{parts.rows, in_parts, nullptr, 0, {}, 0}, 12, nullptr);
    }
    expect(parts.all() == definition.all(), "state after several launches");
  }

  Guarded<int64_t> nodes(Words{3, -1, 0, kNodes, 8}), times(Words{3, 0, 6, 2, -16});
  Results found(5 * k), wanted(5 * k);
  for (const int64_t* before : {static_cast<int64_t*>(nullptr), times.data()}) {
    if (before && !causal) continue;
    recent_lookup_cuda(gpu.rows, {nodes.data(), before, 5}, found.pointers(), nullptr);
    for (int64_t q = 0; q < 5; ++q) {
      if (gpu.rows.has(nodes.data()[q])) {
        recent_lookup_reference(gpu.rows, nodes.data()[q], before ? before + q : nullptr, q, wanted.pointers());
      } else {
        for (int64_t j = 0; j < k; ++j) wanted.pointers().set(q * k + j, {-1, -1, -1});
      }
    }
    expect(found == wanted, "lookup");
  }
}

/// Events with a node out of range are as if they were not there: the others get the numbers, the newest time is
/// theirs. Queries of such nodes find nothing. More events than a block has threads, some of them skipped.
void check_nodes_out_of_range(int64_t size, bool causal) {
  std::mt19937 random(static_cast<unsigned>(size));
  Words src(size), dst(size), time(size), queries(size);
  const auto node = [&] {
    const Words nodes{-1, kNodes, INT64_MIN, INT64_MAX};
    return random() % 6 == 0 ? nodes[random() % 4] : static_cast<int64_t>(random() % kNodes);
  };
  for (int64_t i = 0; i < size; ++i) {
    src[i] = node(), dst[i] = node(), queries[i] = node(), time[i] = i / 3;
    if (i == size - 1) dst[i] = kNodes, time[i] = 1000;  // the newest is not taken
  }
  State gpu(2, causal ? 4 : 2), wanted(2, causal ? 4 : 2);
  for (State* state : {&gpu, &wanted}) state->num_events.data()[0] = 5, state->latest.data()[0] = -7;
  Guarded<int64_t> s(src), d(dst), t(time), q(queries), numbers(size);
  Results found(2 * size), lists(2 * size);
  recent_batch_cuda(
      gpu.rows,
      {s.data(), d.data(), t.data(), nullptr, size, gpu.latest.data(), gpu.num_events.data(), EdgeDirection::both},
      q.data(), 1, causal, found.pointers(), numbers.data(), nullptr);
  const State before(2, causal ? 4 : 2);
  for (int64_t i = 0; i < size; ++i) {
    if (gpu.rows.has(queries[i])) {
      recent_lookup_reference(causal ? wanted.rows : before.rows, queries[i], causal ? &time[i] : nullptr, i,
                              lists.pointers());
    } else {
      for (int64_t j = 0; j < 2; ++j) lists.pointers().set(2 * i + j, {-1, -1, -1});
    }
    if (!gpu.rows.has(src[i]) || !gpu.rows.has(dst[i])) continue;
    recent_batch_reference(
        wanted.rows,
        {&src[i], &dst[i], &time[i], nullptr, 1, wanted.latest.data(), wanted.num_events.data(), EdgeDirection::both},
        nullptr, 0, false, {});
  }
  expect(gpu.all() == wanted.all(), "events of nodes out of range");
  expect(found == lists, "lists of nodes out of range");
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_stream(1, false, false, EdgeDirection::both);
    check_stream(1, true, false, EdgeDirection::both);
    check_stream(3, false, true, EdgeDirection::out);
    check_stream(3, true, true, EdgeDirection::both);
    check_stream(5, true, false, EdgeDirection::in);
    check_stream(40, false, true, EdgeDirection::both);  // rows longer than a warp
    check_stream(20, true, true, EdgeDirection::both);
    check_nodes_out_of_range(7, true);
  });
  for (const bool causal : {false, true}) check_nodes_out_of_range(600, causal);
  std::puts("recent_neighbors: ok");
}
