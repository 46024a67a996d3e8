// integer_pass for AVX512VNNI. The body is integer_pass.inc.
#include "integer_pass.h"
#include "cpu_features.h"

#if SB_X86
SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#include "integer_pass.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const IntegerPassKernels kernels{largest, nearest, stochastic, norm_grad, add,
                                        add_value, relu, relu_grad, squared_error};
static const Register registered_integer_pass{"integer_pass", Isa::avx512vnni, "integer_pass_avx512vnni", &kernels};
}  // namespace sb::avx512vnni
#endif
