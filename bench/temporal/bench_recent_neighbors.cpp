// The recent neighbours beside a plain sequential ring: bench_recent_neighbors [rounds] [k].
//
// The ring (plain_ring.hpp) has records of 16 bytes and writes what it finds as such records; ours has three arrays of
// int64. Both insert at both ends of an edge and look up three nodes an edge as they were before its batch, on one
// thread. One line of JSON for each structure, number of nodes and batch size; they take turns within a round.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "anabranch/core/memory.hpp"
#include "anabranch/temporal/plain_ring.hpp"
#include "anabranch/temporal/recent_neighbors_cpu.hpp"

namespace anabranch {
namespace {

struct Stream {
  std::vector<int64_t> src, dst, time, queries;
  int64_t size() const { return static_cast<int64_t>(src.size()); }
};

/// Ends are drawn evenly from a million nodes, and from few nodes with a preference, as real streams have it.
Stream make_stream(int64_t nodes, int64_t edges) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> unit;
  const auto node = [&] {
    const double u = unit(random);
    return static_cast<int64_t>((nodes > 100'000 ? u : u * u) * static_cast<double>(nodes));
  };
  Stream stream;
  for (int64_t i = 0; i < edges; ++i) {
    const int64_t src = node(), dst = node(), negative = node();
    stream.src.push_back(src), stream.dst.push_back(dst), stream.time.push_back(i / 2);
    stream.queries.insert(stream.queries.end(), {src, dst, negative});
  }
  return stream;
}

class Ours {
 public:
  static constexpr const char* name = "anabranch";
  Ours(int64_t nodes, int64_t k, int64_t batch)
      : memory_(aligned_bytes(nodes * RecentRows::words_for(k) * 8)),
        results_(9 * batch * k),
        rows_{reinterpret_cast<int64_t*>(memory_.get()), nodes, k, k} {
    clear();
  }
  void clear() { recent_clear_cpu(rows_, &latest_, &num_events_); }
  void run(const Stream& stream, int64_t at, int64_t size) {
    int64_t* out = results_.data();
    const int64_t words = 3 * size * rows_.k;
    recent_batch_cpu(rows_,
                     {stream.src.data() + at, stream.dst.data() + at, stream.time.data() + at, nullptr, size, &latest_,
                      &num_events_, EdgeDirection::both},
                     stream.queries.data() + 3 * at, 3, false, {out, out + words, out + 2 * words});
  }

 private:
  AlignedBytes memory_;
  std::vector<int64_t> results_;
  RecentRows rows_;
  int64_t latest_ = 0, num_events_ = 0;
};

class Ring {
 public:
  static constexpr const char* name = "ring";
  Ring(int64_t nodes, int64_t k, int64_t batch)
      : memory_(aligned_bytes(nodes * k * sizeof(PlainRing::Record))),
        oldest_(nodes),
        results_(3 * batch * k),
        ring_{reinterpret_cast<PlainRing::Record*>(memory_.get()), oldest_.data(), nodes, k} {
    clear();
  }
  void clear() { ring_.clear(); }
  void run(const Stream& stream, int64_t at, int64_t size) {
    ring_.look_up(stream.queries.data() + 3 * at, 3 * size, results_.data());
    ring_.insert(stream.src.data() + at, stream.dst.data() + at, stream.time.data() + at, size, at);
  }

 private:
  AlignedBytes memory_;
  std::vector<int32_t> oldest_;
  std::vector<PlainRing::Record> results_;
  PlainRing ring_;
};

template <class Structure>
class Contender {
 public:
  Contender(int64_t nodes, int64_t k, int64_t batch)
      : structure_(nodes, k, batch), nodes_(nodes), k_(k), batch_(batch) {}
  void measure(const Stream& stream) {
    structure_.clear();
    const auto start = std::chrono::steady_clock::now();
    for (int64_t at = 0; at < stream.size(); at += batch_) {
      structure_.run(stream, at, std::min(batch_, stream.size() - at));
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("{\"structure\": \"%s\", \"nodes\": %lld, \"k\": %lld, \"batch\": %lld, \"edges_per_second\": %.0f}\n",
                Structure::name, static_cast<long long>(nodes_), static_cast<long long>(k_),
                static_cast<long long>(batch_), static_cast<double>(stream.size()) / seconds.count());
  }

 private:
  Structure structure_;
  int64_t nodes_, k_, batch_;
};

void bench(int64_t nodes, int64_t k, int64_t batch, int rounds) {
  const Stream stream = make_stream(nodes, nodes > 100'000 ? 2'000'000 : 1'000'000);
  Contender<Ours> ours(nodes, k, batch);
  Contender<Ring> ring(nodes, k, batch);
  for (int round = 0; round < rounds; ++round) ours.measure(stream), ring.measure(stream);
}

}  // namespace
}  // namespace anabranch

int main(int argc, char** argv) {
  using namespace anabranch;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 3;
  const int64_t k = argc > 2 ? std::atoll(argv[2]) : 10;
  parallel_backend().num_threads = [] { return 1; };
  for (const int64_t nodes : {1'000'000, 9'000}) {
    for (const int64_t batch : {100, 1000, 4000}) bench(nodes, k, batch, rounds);
  }
}
