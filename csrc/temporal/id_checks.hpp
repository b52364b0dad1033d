// Ids of a batch on the CPU, where their values can be looked at before anything is written.
#pragma once

#include <string>

#include "torch.hpp"

namespace anabranch {

enum class NegativeIds { refused, mean_none };

/// Raises ValueError for the first id outside [0, limit); negative ones pass where they mean that there is none. `ids`
/// is contiguous, of any shape. All are looked at without a branch first: a batch of a hundred takes ten microseconds.
inline void check_ids(const char* op, const char* name, const Tensor& ids, int64_t limit, const char* remedy,
                      NegativeIds negative = NegativeIds::refused) {
  const int64_t* values = data<int64_t>(ids);
  const int64_t size = ids.numel();
  const uint64_t refused = negative == NegativeIds::refused ? ~uint64_t{0} : 0;
  uint64_t outside = 0;  // its sign bit, that is
  for (int64_t i = 0; i < size; ++i) {
    const auto id = static_cast<uint64_t>(values[i]);
    outside |= (id & refused) | (~id & (static_cast<uint64_t>(limit) - 1 - id));
  }
  if (outside >> 63 == 0) [[likely]]
    return;
  for (int64_t i = 0; i < size; ++i) {
    if (values[i] < limit && (values[i] >= 0 || !refused)) continue;
    const int64_t columns = ids.dim() == 2 ? ids.size(1) : 1;
    const std::string place = std::to_string(i / columns) + (ids.dim() == 2 ? ", " + std::to_string(i % columns) : "");
    check(false, op, ": ", name, "[", place, "] is ", values[i], ", must be in [0, ", limit, ")",
          refused ? "" : " or negative for none", "; ", remedy);
  }
}

}  // namespace anabranch
