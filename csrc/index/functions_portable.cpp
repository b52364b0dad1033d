#include "anabranch/index/functions.hpp"

namespace anabranch {

IndexFunctions index_functions_portable(int key_words) {
  return key_words == 1 ? index_functions_for<CpuIsa::portable, 1>() : index_functions_for<CpuIsa::portable, 2>();
}

}  // namespace anabranch
