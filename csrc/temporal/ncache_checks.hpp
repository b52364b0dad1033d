// The arguments of the N-cache's ops, on every device: the four tables of a cache, a batch of events, and the rows that
// were read for it.
#pragma once

#include <utility>
#include <vector>

#include "anabranch/temporal/ncache.hpp"
#include "temporal/id_checks.hpp"

namespace anabranch {

/// Calls f(Type<Bits>{}) with the unsigned integer as large as an element of `type`, which must be floating.
template <class F>
decltype(auto) dispatch_bits(ScalarType type, F&& f) {
  return type == ScalarType::Double  ? f(Type<uint64_t>{})
         : type == ScalarType::Float ? f(Type<uint32_t>{})
                                     : f(Type<uint16_t>{});
}

/// A 1-D int64 tensor on the device of the cache, `size` long (any length if negative), in one block.
inline Tensor ncache_ids(const char* op, const char* name, const Tensor& ids, const Tensor& keys, int64_t size = -1) {
  check_same_device(op, name, ids, "keys", keys);
  check_dtype(op, name, ids, ScalarType::Long);
  check(ids.dim() == 1 && (size < 0 || ids.size(0) == size), op, ": ", name, " has shape ", shape_string(ids),
        ", must be (", size < 0 ? "n" : std::to_string(size), ",); pass one for each ", size < 0 ? "query" : "event");
  return as_contiguous(ids);
}

/// Slots of nodes: keys, event ids and times [n, S] int64, states [n, S, F]. A cache, or rows of one that were read.
struct NCacheSlots {
  Tensor keys, event_ids, times, states;

  /// `prefix` stands before the names in messages.
  void check_all(const char* op, const std::string& prefix) const {
    const auto name = [&](const char* one) { return prefix + one; };
    check_dtype(op, name("keys").c_str(), keys, ScalarType::Long);
    check_dim(op, name("keys").c_str(), keys, 2);
    for (const auto& [one, tensor] : {std::pair{"event_ids", &event_ids}, std::pair{"times", &times}}) {
      check_same_device(op, name(one).c_str(), *tensor, name("keys").c_str(), keys);
      check_dtype(op, name(one).c_str(), *tensor, ScalarType::Long);
      check(tensor->dim() == 2 && tensor->size(0) == keys.size(0) && tensor->size(1) == keys.size(1), op, ": ",
            name(one), " has shape ", shape_string(*tensor), ", must be ", shape_string(keys), " like ", name("keys"),
            "; pass those that belong to it");
    }
    check_same_device(op, name("states").c_str(), states, name("keys").c_str(), keys);
    check_floating(op, name("states").c_str(), states);
    check(states.dim() == 3 && states.size(0) == keys.size(0) && states.size(1) == keys.size(1) && states.size(2) > 0,
          op, ": ", name("states"), " has shape ", shape_string(states), ", must be (", keys.size(0), ", ",
          keys.size(1), ", state size > 0) like ", name("keys"), "; pass those that belong to it");
    check(keys.size(1) > 0, op, ": ", name("keys"), " has shape ", shape_string(keys),
          ", must have one slot at least; pass those of an NCache");
  }

  void make_contiguous() {
    keys = as_contiguous(keys), event_ids = as_contiguous(event_ids);
    times = as_contiguous(times), states = as_contiguous(states);
  }
  int64_t num_nodes() const { return keys.size(0); }
  int64_t slots() const { return keys.size(1); }
  int64_t state_size() const { return states.size(2); }
};

inline void check_ncache_nodes(const char* op, const char* name, const Tensor& nodes, int64_t num_nodes) {
  check_ids(op, name, nodes, num_nodes, "pass nodes of the cache, or grow it");
}

/// The arguments of ncache_update.
struct NCacheUpdateArguments {
  const char* op;
  NCacheSlots table, rows;
  Tensor src, dst, time, event_id;
  NCacheLayout layout;
  NCachePolicy policy;

  NCacheUpdateArguments(const char* op, NCacheSlots table_in, const Tensor& src_in, const Tensor& dst_in,
                        const Tensor& time_in, const Tensor& event_id_in, NCacheSlots rows_in,
                        const std::vector<int64_t>& slots, double replace_probability, int64_t seed)
      : op(op), table(std::move(table_in)), rows(std::move(rows_in)) {
    table.check_all(op, "");
    check(slots.size() == 1 || slots.size() == 2, op, ": slots has ", slots.size(),
          " numbers, must have 1 or 2; pass the slots of hop 1, and of hop 2 if there are any");
    for (const int64_t length : slots) {
      check(length > 0 && length < int64_t{1} << 31, op, ": slots holds ", length,
            ", must be 1 to 2^31 - 1; pass the slots of each hop");
    }
    layout = NCacheLayout::of(slots[0], slots.size() > 1 ? slots[1] : 0);
    check(layout.slots() == table.slots(), op, ": keys has shape ", shape_string(table.keys), ", must be (nodes, ",
          layout.slots(), ") for these slots; pass the slots that the cache was made with");
    check(replace_probability >= 0 && replace_probability <= 1, op, ": replace_probability is ", replace_probability,
          ", must be in [0, 1]; it is the chance of a write to take another key's slot");
    policy = {static_cast<uint64_t>(seed), static_cast<float>(replace_probability)};
    for (const auto& [name, tensor] : {std::pair{"keys", &table.keys}, std::pair{"event_ids", &table.event_ids},
                                       std::pair{"times", &table.times}, std::pair{"states", &table.states}}) {
      check(tensor->is_contiguous(), op, ": ", name, " is not contiguous, must be; pass the cache's own buffer");
    }
    src = ncache_ids(op, "src", src_in, table.keys);
    const int64_t events = src.size(0);
    dst = ncache_ids(op, "dst", dst_in, table.keys, events);
    time = ncache_ids(op, "time", time_in, table.keys, events);
    event_id = ncache_ids(op, "event_id", event_id_in, table.keys, events);
    check_same_device(op, "read_keys", rows.keys, "keys", table.keys);
    rows.check_all(op, "read_");
    check(rows.num_nodes() == 2 * events && rows.slots() == table.slots(), op, ": read_keys has shape ",
          shape_string(rows.keys), ", must be (", 2 * events, ", ", table.slots(),
          "); pass the rows that were read for all sources, then for all destinations");
    check(rows.state_size() == table.state_size(), op, ": read_states has shape ", shape_string(rows.states),
          ", must be (", 2 * events, ", ", table.slots(), ", ", table.state_size(),
          ") like states; pass z of the read");
    check_dtype(op, "read_states", rows.states, table.states.scalar_type());
    rows.make_contiguous();
    check_apart();
  }

  /// On the CPU: ids in range, events in order. Nothing has been written when this throws.
  void check_values() const {
    check_ncache_nodes(op, "src", src, table.num_nodes());
    check_ncache_nodes(op, "dst", dst, table.num_nodes());
    const int64_t *times = data<int64_t>(time), *ids = data<int64_t>(event_id);
    for (int64_t e = 0; e < src.size(0); ++e) {
      check(ids[e] >= 0, op, ": event_id[", e, "] is ", ids[e], ", must be at least 0; number the events from 0");
      check(e == 0 || !comes_before(times[e], ids[e], times[e - 1], ids[e - 1]), op, ": event ", e, " (time ", times[e],
            ", id ", ids[e], ") comes before the one in front of it, must not; sort the batch by (time, event id)");
    }
    const int64_t *keys = data<int64_t>(rows.keys), *events = data<int64_t>(rows.event_ids);
    for (int64_t row = 0; row < rows.num_nodes(); ++row) {
      for (int64_t slot = 1; slot <= layout.length[1]; ++slot) {
        const int64_t at = row * layout.slots() + slot;
        check(keys[at] < table.num_nodes() && (keys[at] < 0 || events[at] >= 0), op, ": read_keys[", row, ", ", slot,
              "] is ", keys[at], " of event ", events[at], ", must be a node below ", table.num_nodes(),
              " of an event, or -1; pass what was read from this cache");
      }
    }
  }

  template <class Bits>
  NCacheTable<Bits> pointers() const {
    return {mutable_data<int64_t>(table.keys),
            mutable_data<int64_t>(table.event_ids),
            mutable_data<int64_t>(table.times),
            mutable_data<Bits>(table.states),
            table.num_nodes(),
            table.state_size(),
            layout};
  }
  template <class Bits>
  NCacheBatch<Bits> batch() const {
    return {data<int64_t>(src),
            data<int64_t>(dst),
            data<int64_t>(time),
            data<int64_t>(event_id),
            src.size(0),
            data<int64_t>(rows.keys),
            data<int64_t>(rows.event_ids),
            data<int64_t>(rows.times),
            data<Bits>(rows.states)};
  }

 private:
  /// Nothing that is written may be read elsewhere in the call.
  void check_apart() const {
    const std::pair<const char*, const Tensor*> written[] = {
        {"keys", &table.keys}, {"event_ids", &table.event_ids}, {"times", &table.times}, {"states", &table.states}};
    const std::pair<const char*, const Tensor*> read[] = {{"src", &src},
                                                          {"dst", &dst},
                                                          {"time", &time},
                                                          {"event_id", &event_id},
                                                          {"read_keys", &rows.keys},
                                                          {"read_event_ids", &rows.event_ids},
                                                          {"read_times", &rows.times},
                                                          {"read_states", &rows.states}};
    for (int i = 0; i < 4; ++i) {
      const auto& [table_name, table_tensor] = written[i];
      for (int j = i + 1; j < 4; ++j) {
        anabranch::check_apart(op, written[j].first, *written[j].second, table_name, *table_tensor);
      }
      for (const auto& [name, tensor] : read) anabranch::check_apart(op, name, *tensor, table_name, *table_tensor);
    }
  }
};

}  // namespace anabranch
