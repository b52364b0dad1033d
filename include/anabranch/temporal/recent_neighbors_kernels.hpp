// The loops of recent_neighbors_cpu.hpp over nodes, compiled once for each instruction set by
// csrc/temporal/recent_neighbors_<isa>.cpp.
//
// An entry that is the newest, as nearly all are, moves the whole row down by one word: the three arrays lie behind one
// another, and the word that crosses from one into the next is then written over. Words move in the widest vectors
// there are, the last of a stretch overlapping the one before: k = 10 has nothing left over to loop through.
//
// Everything is a template on the instruction set or always inlined, so that no copy compiled with AVX-512 can be the
// one the linker keeps for an older machine.
#pragma once

#include "anabranch/temporal/recent_neighbors_cpu.hpp"

namespace anabranch::detail {

/// For rows of `fixed_capacity` slots and lists of `fixed_k`, or of any where they are 0: known numbers of words are
/// copied without loops and branches, which takes half the time.
template <CpuIsa isa, int fixed_k, int fixed_capacity>
struct RecentLoops {
  static constexpr int widest = isa >= CpuIsa::avx512 ? 8 : isa >= CpuIsa::avx2 ? 4 : 2;
  // How far ahead rows are asked for.
  static constexpr int64_t queries_ahead = 12, events_ahead = 6;

  template <int lanes>
  struct Vector {
    typedef int64_t Words __attribute__((vector_size(lanes * 8), aligned(8), may_alias));

    [[gnu::always_inline]] static Words load(const int64_t* from) { return *reinterpret_cast<const Words*>(from); }
    [[gnu::always_inline]] static void store(int64_t* to, const Words& words) { *reinterpret_cast<Words*>(to) = words; }
  };
  using Line = Vector<8>;

  /// `n` words to where they do not overlap, or to one word before them.
  template <int lanes = widest>
  [[gnu::always_inline]] static void copy(int64_t* to, const int64_t* from, int64_t n) {
    for (; n >= lanes; n -= lanes, to += lanes, from += lanes) Vector<lanes>::store(to, Vector<lanes>::load(from));
    if constexpr (lanes > 1) copy<lanes / 2>(to, from, n);
  }

  /// The rows, with numbers that the compiler knows where they are fixed.
  [[gnu::always_inline]] static RecentRows known(const RecentRows& rows) {
    return fixed_k == 0 ? rows : RecentRows{rows.words, rows.num_nodes, fixed_k, fixed_capacity};
  }

  template <bool writes>
  [[gnu::always_inline]] static void prefetch(const RecentRows& rows, int64_t node) {
    const int64_t* words = rows.row(node).words;
    for (int64_t at = 0; at < rows.row_words(); at += 8) __builtin_prefetch(words + at, writes, 3);
  }

  // By value: what a reference was given to may change with every call.
  [[gnu::noinline]] static void insert_anywhere(RecentRows rows, int64_t node, RecentEntry entry) {
    recent_insert_reference(rows, node, entry);
  }

  [[gnu::always_inline]] static void insert(const RecentRows& rows, int64_t node, const RecentEntry& entry) {
    const int64_t c = rows.capacity;
    const RecentRow row = rows.row(node);
    const int64_t newest = row.times()[c - 1];
    if (comes_before(entry.time, entry.event_id, newest, row.event_ids()[c - 1]) ||
        rows.oldest_slot(row, entry.time) != 0) [[unlikely]] {
      return insert_anywhere(rows, node, entry);
    }
    if constexpr (widest == 8 && fixed_capacity != 0) {
      append_by_lines(row, entry);
    } else {
      copy(row.words, row.words + 1, 3 * c - 1);
      row.set(c - 1, entry);
      ++row.num_events();
    }
  }

  /// An entry that is the newest, into a row of known length: whole lines in and out. A load that crosses lines, or
  /// finds a word that was just stored among others, would take several times as long.
  [[gnu::always_inline]] static void append_by_lines(const RecentRow& row, const RecentEntry& entry) {
    constexpr int words = static_cast<int>(RecentRows::words_for(fixed_capacity)), c = fixed_capacity;
    typename Line::Words lines[words / 8 + 1];
#pragma GCC unroll 16
    for (int i = 0; i < words / 8; ++i) lines[i] = Line::load(row.words + 8 * i);
    lines[words / 8] = typename Line::Words{} - 1;  // as the words behind the count are
    const int64_t num_events = row.num_events() + 1;
#pragma GCC unroll 16
    for (int i = 0; i < words / 8; ++i) {
      typename Line::Words moved = __builtin_shufflevector(lines[i], lines[i + 1], 1, 2, 3, 4, 5, 6, 7, 8);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        if (8 * i + j == c - 1) moved[j] = entry.neighbor;
        if (8 * i + j == 2 * c - 1) moved[j] = entry.time;
        if (8 * i + j == 3 * c - 1) moved[j] = entry.event_id;
        if (8 * i + j == 3 * c) moved[j] = num_events;
      }
      Line::store(row.words + 8 * i, moved);
    }
  }

  [[gnu::noinline]] static void lookup_by_slot(RecentRows rows, int64_t node, const int64_t* time, int64_t at,
                                               RecentResults results) {
    recent_lookup_reference(rows, node, time, at, results);
  }

  [[gnu::always_inline]] static void lookup(const RecentRows& rows, int64_t node, const int64_t* time, int64_t at,
                                            const RecentResults& results) {
    const int64_t k = rows.k, c = rows.capacity;
    const RecentRow row = rows.row(node);
    int64_t end = c;
    while (time && end > 0 && row.is_hidden(*time, end - 1)) --end;
    if (end < k) [[unlikely]]
      return lookup_by_slot(rows, node, time, at, results);
    copy(results.neighbors + at * k, row.neighbors() + end - k, k);
    copy(results.times + at * k, row.times() + end - k, k);
    copy(results.event_ids + at * k, row.event_ids() + end - k, k);
  }

  // Arguments are copied below: what a loop stores might be a field of what it has by reference.

  static void look_up(const RecentRows& given_rows, const RecentQueries& given_queries, int64_t begin, int64_t end,
                      const RecentResults& given_results) {
    const RecentRows rows = known(given_rows);
    const RecentQueries queries = given_queries;
    const RecentResults results = given_results;
    for (int64_t q = begin; q < end && q < begin + queries_ahead; ++q) prefetch<false>(rows, queries.nodes[q]);
    for (int64_t q = begin; q < end; ++q) {
      if (q + queries_ahead < end) prefetch<false>(rows, queries.nodes[q + queries_ahead]);
      lookup(rows, queries.nodes[q], queries.times ? queries.times + q : nullptr, q, results);
    }
  }

  static void run(const RecentRows& rows, const RecentEvents& events, const int64_t* queries, int64_t per_event,
                  const RecentResults& results, const NodeShare& share) {
    const bool alone = share.num_workers == 1;
    if (per_event == 0)
      return (alone ? run_as<true, false> : run_as<false, false>)(rows, events, queries, 0, results, share);
    (alone ? run_as<true, true> : run_as<false, true>)(rows, events, queries, per_event, results, share);
  }

  /// What a share has to do for a batch: the entries of each event, after its queries where there are any.
  template <bool alone, bool looks_up>
  static void run_as(const RecentRows& given_rows, const RecentEvents& given_events, const int64_t* queries,
                     int64_t per_event, const RecentResults& given_results, const NodeShare& share) {
    const RecentRows rows = known(given_rows);
    const RecentEvents events = given_events;
    const RecentResults results = given_results;
    const bool to_src = events.direction != EdgeDirection::in, to_dst = events.direction != EdgeDirection::out;
    const auto for_each_query = [&](int64_t i, const auto& f) {
      for (int64_t q = i * per_event; looks_up && q < (i + 1) * per_event; ++q) {
        if (alone || share.owns(queries[q])) f(q);
      }
    };
    const auto for_each_entry = [&](int64_t i, const auto& f) {
      const int64_t src = events.src[i], dst = events.dst[i];
      if (to_src && (alone || share.owns(src))) f(src, dst);
      if (to_dst && !(to_src && src == dst) && (alone || share.owns(dst))) f(dst, src);
    };
    const auto prefetch_event = [&](int64_t i) {
      for_each_query(i, [&](int64_t q) { prefetch<false>(rows, queries[q]); });
      for_each_entry(i, [&](int64_t node, int64_t) { prefetch<true>(rows, node); });
    };
    for (int64_t i = 0; i < events_ahead && i < events.size; ++i) prefetch_event(i);
    for (int64_t i = 0; i < events.size; ++i) {
      if (i + events_ahead < events.size) prefetch_event(i + events_ahead);
      for_each_query(i, [&](int64_t q) { lookup(rows, queries[q], events.time + i, q, results); });
      const int64_t time = events.time[i], id = events.id(i);
      for_each_entry(i, [&](int64_t node, int64_t neighbor) { insert(rows, node, {neighbor, time, id}); });
    }
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa>
RecentKernels recent_kernels_for(int64_t k, int64_t capacity) {
  const auto loops = []<int k, int capacity>() {
    using Loops = detail::RecentLoops<isa, k, capacity>;
    return RecentKernels{Loops::look_up, Loops::run};
  };
  // What the models of the literature ask for: TGN 10, TGAT and the DyGLib 20.
  if (k == 10 && capacity == 10) return loops.template operator()<10, 10>();
  if (k == 10 && capacity == 20) return loops.template operator()<10, 20>();
  if (k == 20 && capacity == 20) return loops.template operator()<20, 20>();
  return loops.template operator()<0, 0>();
}

}  // namespace anabranch
