// integer_pass without any ISA extension. The body is integer_pass.inc.
#include "integer_pass.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#include "integer_pass.inc"
const IntegerPassKernels kernels{largest, nearest, stochastic, norm_grad, add,
                                        add_value, relu, relu_grad, squared_error};
const Register registered_integer_pass{"integer_pass", Isa::portable, "integer_pass_portable", &kernels};
}  // namespace
}  // namespace sb::portable
