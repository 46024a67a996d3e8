// Large outputs on large pages: a fresh 8 MiB buffer costs 2,048 faults of 4 KiB, more than the pass that fills it.
#pragma once

#include "subbyte.h"

namespace sb {

// Tell the system that [p, p + bytes) is about to be written throughout. Nothing happens to small or used memory.
void will_fill(void* p, i64 bytes);

}  // namespace sb
