// The arguments of random_projections_update, on every device.
#pragma once

#include <cmath>
#include <utility>

#include "anabranch/temporal/random_projections.hpp"
#include "temporal/ordered_scatter_checks.hpp"

namespace anabranch {

struct RandomProjectionsArguments {
  Tensor table, last_time, now, src, dst, time;
  double decay;

  RandomProjectionsArguments(const char* op, const Tensor& table_in, const Tensor& last_time_in, const Tensor& now_in,
                             const Tensor& src_in, const Tensor& dst_in, const Tensor& time_in, double decay_in)
      : table(table_in),
        last_time(last_time_in),
        now(now_in),
        src(src_in),
        dst(dst_in),
        time(time_in),
        decay(decay_in) {
    check_floating(op, "table", table);
    check_written_table(op, "table", table, 3);
    check_int64_vector(op, "last_time", last_time, "table", table, table.size(0));
    check_written_table(op, "last_time", last_time, 1);
    check_int64_vector(op, "now", now, "table", table, 1);
    check_int64_vector(op, "src", src, "table", table);
    check_int64_vector(op, "dst", dst, "table", table, src.size(0));
    check_int64_vector(op, "time", time, "table", table, src.size(0));
    check(src.size(0) < int64_t{1} << 29, op, ": src has shape ", shape_string(src),
          ", must be below 2^29; pass the batch in parts");
    check(decay >= 0 && std::isfinite(decay), op, ": decay is ", decay,
          ", must be finite and not negative; pass the rate per unit of time");
    src = as_contiguous(src), dst = as_contiguous(dst), time = as_contiguous(time), now = as_contiguous(now);
    check_apart(op, "last_time", last_time, "table", table);
    for (const auto& [name, tensor] :
         {std::pair{"now", &now}, std::pair{"src", &src}, std::pair{"dst", &dst}, std::pair{"time", &time}}) {
      check_apart(op, name, *tensor, "table", table);
      check_apart(op, name, *tensor, "last_time", last_time);
    }
  }

  /// On the CPU.
  void check_values(const char* op) const {
    check_ids(op, "src", src, table.size(0), "make a table with more rows or check the ids");
    check_ids(op, "dst", dst, table.size(0), "make a table with more rows or check the ids");
  }

  template <class T>
  RandomProjections<T> problem() const {
    return {mutable_data<T>(table),
            mutable_data<int64_t>(last_time),
            data<int64_t>(now),
            data<int64_t>(src),
            data<int64_t>(dst),
            data<int64_t>(time),
            decay,
            table.size(0),
            table.size(1),
            table.size(2),
            src.size(0)};
  }
};

}  // namespace anabranch
