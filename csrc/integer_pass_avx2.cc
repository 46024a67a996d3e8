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
static const IntegerPassKernels kernels{largest, nearest_codes, stochastic, norm_grad, add, add_value, relu,
    relu_grad, largest_each, shifts, nearest_each, stochastic_each, squared_error, exponent, codes, largest_wide,
    floats, floats_wide};
static const Register registered_integer_pass{"integer_pass", Isa::avx2, "integer_pass_avx2", &kernels};
static const IntegerSgdKernels sgd{sums, momentum, weights};
static const Register registered_int_sgd{"int_sgd", Isa::avx2, "int_sgd_avx2", &sgd};
}  // namespace sb::avx2
#endif
