// integer_pass and int_sgd for AVX2. The bodies are integer_pass.inc and integer_sgd.inc.
#include "integer_pass.h"
#include "integer_sgd.h"
#include "cpu_features.h"

#if SB_X86
SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {
#include "integer_pass.inc"
#include "integer_sgd.inc"
}  // namespace
}  // namespace sb::avx2
SB_TARGET_END

namespace sb::avx2 {
static const Register registered{kIntegerPassOps, Isa::avx2, "", &kernels};
static const Register registered_sgd{kIntegerSgdOps, Isa::avx2, "", &sgd_kernels};
}  // namespace sb::avx2
#endif
