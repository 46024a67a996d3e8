// integer_pass and int_sgd for AVX512VNNI. The bodies are integer_pass.inc and integer_sgd.inc.
#include "integer_pass.h"
#include "integer_sgd.h"
#include "cpu_features.h"

#if SB_X86
SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#include "integer_pass.inc"
#include "integer_sgd.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const Register registered{kIntegerPassOps, Isa::avx512vnni, "", &kernels};
static const Register registered_sgd{kIntegerSgdOps, Isa::avx512vnni, "", &sgd_kernels};
}  // namespace sb::avx512vnni
#endif
