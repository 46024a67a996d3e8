// The range of a tensor: max |x| as the integer of its float bits (numerics.range_bits). What an ISA file provides.
#pragma once

#include "subbyte.h"

namespace sb {

struct AmaxKernels {
    // *m = max(*m, bits of |x[0..n)|)
    void (*run)(Floats x, i64 n, i32* m);
    // m[c] = max(m[c], bits of |x[r * columns + c]|) over all rows
    void (*columns)(Floats x, i64 rows, i64 columns, i32* m);
};
inline constexpr const char* kAmaxOps[] = {"amax"};

}  // namespace sb
