#include "anabranch/index/functions.hpp"

namespace anabranch {

IndexFunctions index_functions_avx512(int key_words) {
  return key_words == 1 ? index_functions_for<CpuIsa::avx512, 1>() : index_functions_for<CpuIsa::avx512, 2>();
}

}  // namespace anabranch
