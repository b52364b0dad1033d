#include "anabranch/index/functions.hpp"

namespace anabranch {

IndexFunctions index_functions_avx2(int key_words) {
  return key_words == 1 ? index_functions_for<CpuIsa::avx2, 1>() : index_functions_for<CpuIsa::avx2, 2>();
}

}  // namespace anabranch
