// integer_pass and int_sgd without any ISA extension. The bodies are integer_pass.inc and integer_sgd.inc.
#include "integer_pass.h"
#include "integer_sgd.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#include "integer_pass.inc"
#include "integer_sgd.inc"
const IntegerPassKernels kernels{largest, nearest_codes, stochastic, norm_grad, add, add_value, relu,
    relu_grad, largest_each, shifts, nearest_each, stochastic_each, squared_error, exponent, codes, largest_wide,
    floats, floats_wide};
const Register registered_integer_pass{"integer_pass", Isa::portable, "integer_pass_portable", &kernels};
const IntegerSgdKernels sgd{sums, momentum, weights};
const Register registered_int_sgd{"int_sgd", Isa::portable, "int_sgd_portable", &sgd};
}  // namespace
}  // namespace sb::portable
