// integer_pass and int_sgd without any ISA extension. The bodies are integer_pass.inc and integer_sgd.inc.
#include "integer_pass.h"
#include "integer_sgd.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#include "integer_pass.inc"
#include "integer_sgd.inc"
const Register registered{kIntegerPassOps, Isa::portable, "", &kernels};
const Register registered_sgd{kIntegerSgdOps, Isa::portable, "", &sgd_kernels};
}  // namespace
}  // namespace sb::portable
