// Spherical harmonics of a list of vectors and their derivatives, vectors in lanes. Compiled once per instruction set.
#include "../core/spherical_harmonics_op.h"

#include "conv_schedule.h"
#include "isa.h"

namespace glassconv {
namespace GLASSCONV_ISA {

inline constexpr int64_t kVectorsPerTask = 4096;

template <class T>
struct HarmonicsWorker {
  const HarmonicsArrays<T>* arrays;
  Lanes<T>*vectors, *along, *sh, *grad_vectors, *zeros;
  int64_t* index;

  static HarmonicsWorker layout(const HarmonicsArrays<T>& arrays, Arena& arena) {
    constexpr int64_t wide = kMaxHarmonics * kMaxBlocks<T>, narrow = 3 * kMaxBlocks<T>;
    return {&arrays,
            arena.take<Lanes<T>>(narrow),
            arena.take<Lanes<T>>(narrow),
            arena.take<Lanes<T>>(wide),
            arena.take<Lanes<T>>(narrow),
            arena.take<Lanes<T>>(wide),
            arena.take<int64_t>(kMaxEdges)};
  }

  void task(int64_t number) {
    memset(zeros, 0, sizeof(Lanes<T>) * kMaxHarmonics * kMaxBlocks<T>);
    const int64_t first = number * kVectorsPerTask, stop = first + kVectorsPerTask;
    constexpr int64_t step = kMaxEdges;
    for (int64_t at = first; at < stop && at < arrays->n; at += step) {
      const int64_t end = stop < arrays->n ? stop : arrays->n;
      for (int64_t i = 0; i < step; ++i) index[i] = at + i < end ? at + i : -1;
      batch(static_cast<int>(((end - at < step ? end - at : step) + kLanes<T> - 1) / kLanes<T>));
    }
  }

  void batch(int n_blocks) {
    const HarmonicsArrays<T>& a = *arrays;
    const int64_t width = n_harmonics(a.l_max);
    gather<T>({a.vectors, 3, a.n}, index, n_blocks, 3, vectors);
    if (a.along != nullptr) gather<T>({a.along, 3, a.n}, index, n_blocks, 3, along);
    if (a.sh != nullptr) {
      if (a.along == nullptr) {
        harmonics_tile<T>(vectors, n_blocks, a.l_max, sh);
      } else {
        harmonics_derivative_tile<T>(vectors, along, n_blocks, a.l_max, sh);
      }
      scatter<T>(sh, index, n_blocks, width, {a.sh, width, a.n});
    }
    if (a.grad_vectors != nullptr) {
      gather<T>({a.grad_sh, width, a.n}, index, n_blocks, width, sh);
      if (a.along == nullptr) {
        harmonics_gradient_tile<T>(vectors, sh, nullptr, nullptr, n_blocks, a.l_max, grad_vectors);
      } else {
        harmonics_gradient_tile<T>(vectors, zeros, along, sh, n_blocks, a.l_max, grad_vectors);
      }
      scatter<T>(grad_vectors, index, n_blocks, 3, {a.grad_vectors, 3, a.n});
    }
  }
};

template <class T>
bool spherical_harmonics_of(const HarmonicsArrays<T>& arrays, const Executor& executor) {
  return run_tasks<HarmonicsWorker<T>>(arrays, (arrays.n + kVectorsPerTask - 1) / kVectorsPerTask, executor);
}

template bool spherical_harmonics_of<float>(const HarmonicsArrays<float>&, const Executor&);
template bool spherical_harmonics_of<double>(const HarmonicsArrays<double>&, const Executor&);

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
