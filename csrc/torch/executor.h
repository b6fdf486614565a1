// The core's Executor on torch's threads: torch.set_num_threads rules.
#pragma once

#include <ATen/Parallel.h>

#include "../core/platform.h"

namespace glassconv {

inline void run_on_torch_threads(void*, int64_t n_tasks, void (*body)(void*, int64_t), void* context) {
  at::parallel_for(0, n_tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) body(context, task);
  });
}

inline Executor at_executor() { return {at::get_num_threads(), &run_on_torch_threads, nullptr}; }

}  // namespace glassconv
