// Second step of the CPU neighbor search: the particles around a bin, where they stand for the particles in it.
#pragma once

#include "neighbors_cells.h"
#include "neighbors_rows.h"

namespace glassconv {

// The particles that can be neighbors of those in one bin.
class Candidates {
 public:
  Candidates(const SortedParticles& particles, double cutoff) : particles_(particles), cutoff_(cutoff) {}

  void gather(const CellGrid& grid, int64_t bin);

  // See SelectRow; for the particle in a slot of the bin.
  int64_t select(int64_t slot, const RowArrays& to, bool* is_certain) {
    return is_far_ ? select_from(kernels_.select_double, far_, slot, to, is_certain)
                   : select_from(kernels_.select_float, near_, slot, to, is_certain);
  }

  int64_t size() const { return n_; }
  bool are_home() const { return are_home_; }

 private:
  template <class T>
  struct Coordinates {
    std::span<T> x, y, z;
    T certain_sq, possible_sq;
  };

  void reserve(int64_t n);
  void find_runs(const CellGrid& grid, int64_t bin);

  template <class T>
  CandidateArrays<T> arrays(Coordinates<T>& at) {
    return {at.x.data(), at.y.data(), at.z.data(), slot_.data(), particle_.data(), are_home_ ? nullptr : image_.data(), n_};
  }

  template <class T>
  void place(PlaceRun<T> kernel, Coordinates<T>& at, double scale);

  template <class T>
  int64_t select_from(SelectRow<T> kernel, Coordinates<T>& at, int64_t slot, const RowArrays& to, bool* is_certain) {
    const int64_t itself = slot - itself_;
    const auto k = static_cast<size_t>(itself);
    return kernel(arrays(at), {at.x[k], at.y[k], at.z[k], itself, at.certain_sq, at.possible_sq}, to, is_certain);
  }

  const SortedParticles& particles_;
  const double cutoff_;
  const RowKernels& kernels_ = row_kernels();
  std::vector<SlotRun> runs_;
  Workspace memory_;  // aligned, unlike a vector's: loads that cross cache lines take twice as long
  std::span<int32_t> slot_, particle_;
  std::span<uint32_t> image_;
  Coordinates<float> near_;  // relative to the bin, in units of the cutoff
  Coordinates<double> far_;  // where float32 could not tell much
  bool is_far_ = false, are_home_ = false;
  int64_t itself_ = 0;  // the slot that is candidate 0, or would be, when counted from a particle of the bin
  int64_t n_ = 0;       // with those that are infinitely far
};

}  // namespace glassconv
