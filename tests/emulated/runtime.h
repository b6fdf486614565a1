// What the tests may set.
#pragma once

namespace emulated {

// The orders of the next kernels' threads and blocks are drawn from here on as from the start: from GLASSCONV_EMULATED_SEED (0
// where it is not set).
void restart_random();

}  // namespace emulated
