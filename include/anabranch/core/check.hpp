// Argument checks of every op: one message form, one exception type.
#pragma once

#include <sstream>
#include <stdexcept>

namespace anabranch {

/// Throws std::invalid_argument (ValueError in Python) with all parts joined, unless `condition` holds.
/// Form: `op: argument is X, must be Y; do Z`.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace anabranch
