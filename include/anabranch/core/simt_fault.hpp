// What the host harness throws when a kernel did what no kernel may do.
#pragma once

#include <stdexcept>
#include <string>

namespace anabranch::simt {

struct Fault : std::logic_error {
  enum Kind { out_of_range, misaligned, race, uninitialized, divergence, invalid_collective };
  Fault(Kind kind_, const std::string& what) : std::logic_error(what), kind(kind_) {}
  Kind kind;
};

}  // namespace anabranch::simt
