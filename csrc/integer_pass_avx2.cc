// integer_pass for AVX2. The body is integer_pass.inc.
#include "integer_pass.h"
#include "cpu_features.h"

#if SB_X86
SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {
#include "integer_pass.inc"
}  // namespace
}  // namespace sb::avx2
SB_TARGET_END

namespace sb::avx2 {
static const IntegerPassKernels kernels{largest, nearest, stochastic, norm_grad, add,
                                        add_value, relu, relu_grad, squared_error};
static const Register registered_integer_pass{"integer_pass", Isa::avx2, "integer_pass_avx2", &kernels};
}  // namespace sb::avx2
#endif
