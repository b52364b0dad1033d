#include "anabranch/index/functions.hpp"
#include "anabranch/index/validate.hpp"

namespace anabranch {
namespace {

const IndexFunctions& functions_of([[maybe_unused]] CpuIsa isa, int key_words) {
  static const IndexFunctions portable[] = {index_functions_portable(1), index_functions_portable(2)};
#if defined(__x86_64__)
  if (isa >= CpuIsa::avx512) {
    static const IndexFunctions avx512[] = {index_functions_avx512(1), index_functions_avx512(2)};
    return avx512[key_words - 1];
  }
  if (isa == CpuIsa::avx2) {
    static const IndexFunctions avx2[] = {index_functions_avx2(1), index_functions_avx2(2)};
    return avx2[key_words - 1];
  }
#endif
  return portable[key_words - 1];
}

}  // namespace

const IndexFunctions& index_functions(int key_words) { return functions_of(cpu_isa(), key_words); }

std::string validate_index(const IndexArena& arena, int key_words) {
  using namespace index_detail;
  return key_words == 1 ? Validator<CpuIsa::portable, 1>::check({arena})
                        : Validator<CpuIsa::portable, 2>::check({arena});
}

}  // namespace anabranch
