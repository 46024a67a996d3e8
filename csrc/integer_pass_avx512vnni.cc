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
static const IntegerPassKernels kernels{largest, nearest_codes, stochastic, norm_grad, add, add_value, relu,
    relu_grad, largest_each, shifts, nearest_each, stochastic_each, squared_error, exponent, codes, largest_wide,
    floats, floats_wide};
static const Register registered_integer_pass{"integer_pass", Isa::avx512vnni, "integer_pass_avx512vnni", &kernels};
static const IntegerSgdKernels sgd{sums, momentum, weights};
static const Register registered_int_sgd{"int_sgd", Isa::avx512vnni, "int_sgd_avx512vnni", &sgd};
}  // namespace sb::avx512vnni
#endif
