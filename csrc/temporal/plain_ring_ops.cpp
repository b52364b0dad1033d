// The plain ring of plain_ring.hpp in torch: the peer of RecentNeighbors in `bench temporal`, on the CPU alone.
#include <algorithm>
#include <utility>

#include "anabranch/temporal/plain_ring.hpp"
#include "temporal/id_checks.hpp"

namespace anabranch {
namespace {

/// The two tensors of state: records int64 [num_nodes, k, 2], a record being two words, and oldest int32 [num_nodes].
PlainRing ring_of(const char* op, const Tensor& records, const Tensor& oldest) {
  check_dtype(op, "records", records, ScalarType::Long);
  check(records.dim() == 3 && records.size(1) >= 1 && records.size(2) == 2, op, ": records has shape ",
        shape_string(records), ", must be (num_nodes, k, 2) with k at least 1; make two words for each record");
  check(records.is_contiguous(), op, ": records is not contiguous, must be; call .contiguous()");
  check_index_vector(op, "oldest", oldest, records.size(0));
  check(records.size(0) < INT32_MAX && records.size(1) < INT32_MAX, op, ": records has shape ", shape_string(records),
        ", must have fewer than 2^31 nodes and places; its ids have 32 bits");
  check_apart(op, "oldest", oldest, "records", records);
  return {static_cast<PlainRing::Record*>(records.mutable_data_ptr()), mutable_data<int32_t>(oldest), records.size(0),
          records.size(1)};
}

Tensor node_ids(const char* op, const char* name, const Tensor& given, int64_t dim, int64_t size) {
  check_dtype(op, name, given, ScalarType::Long);
  check_dim(op, name, given, dim);
  check(given.size(0) == size, op, ": ", name, " has shape ", shape_string(given), ", must have ", size,
        " entries like src; give each event its own");
  return as_contiguous(given);
}

void clear(const Tensor& records, const Tensor& oldest) {
  const PlainRing ring = ring_of("plain_ring_clear", records, oldest);
  advise_huge_pages(records);
  ring.clear();
}

/// Batch after batch: looks up the queries of its events, then inserts these. What was found is returned of the last
/// batch alone; the others have the same memory for it, so that the ring waits for no pages.
Tensor run(const Tensor& records, const Tensor& oldest, const Tensor& src_in, const Tensor& dst_in,
           const Tensor& time_in, const Tensor& queries_in, int64_t first_event, int64_t batch) {
  constexpr const char* op = "plain_ring_run";
  const PlainRing ring = ring_of(op, records, oldest);
  check_dim(op, "src", src_in, 1);
  const int64_t events = src_in.size(0);
  const Tensor src = node_ids(op, "src", src_in, 1, events), dst = node_ids(op, "dst", dst_in, 1, events);
  const Tensor time = node_ids(op, "time", time_in, 1, events);
  const Tensor queries = node_ids(op, "queries", queries_in, 2, events);
  for (const auto& [name, tensor] : {std::pair{"src", &src}, {"dst", &dst}, {"time", &time}, {"queries", &queries}}) {
    check_apart(op, name, *tensor, "records", records);
    check_apart(op, name, *tensor, "oldest", oldest);
  }
  check(batch >= 1 && events % batch == 0, op, ": batch is ", batch, ", must divide the ", events,
        " events; leave the last ones out");
  check(first_event >= 0 && first_event <= INT32_MAX - events, op, ": first_event is ", first_event, ", must be 0 to ",
        INT32_MAX - events, "; number events from 0 on");
  check_ids(op, "src", src, ring.num_nodes, "pass nodes that have a row");
  check_ids(op, "dst", dst, ring.num_nodes, "pass nodes that have a row");
  check_ids(op, "queries", queries, ring.num_nodes, "pass nodes that have a row");
  const int64_t per_event = queries.size(1), longest = std::min(batch, events);
  const Tensor found = empty_on(records, {longest, per_event, ring.k, 2}, ScalarType::Long);
  auto* out = static_cast<PlainRing::Record*>(found.mutable_data_ptr());
  for (int64_t at = 0; at < events; at += batch) {
    const int64_t size = std::min(batch, events - at);
    ring.look_up(data<int64_t>(queries) + at * per_event, size * per_event, out);
    ring.insert(data<int64_t>(src) + at, data<int64_t>(dst) + at, data<int64_t>(time) + at, size, first_event + at);
  }
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("plain_ring_clear(Tensor(a!) records, Tensor(b!) oldest) -> ()");
  m.def(
      "plain_ring_run(Tensor(a!) records, Tensor(b!) oldest, Tensor src, Tensor dst, Tensor time, Tensor queries, int "
      "first_event, SymInt batch) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("plain_ring_clear", TORCH_BOX(&clear));
  m.impl("plain_ring_run", TORCH_BOX(&run));
}

}  // namespace anabranch
