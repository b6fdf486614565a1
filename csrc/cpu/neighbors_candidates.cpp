#include "neighbors_candidates.h"

#include <algorithm>

namespace glassconv {

void Candidates::find_runs(const CellGrid& grid, int64_t bin) {
  runs_.clear();
  const int64_t line_of_bin = (bin - grid.first_bin) / bins_in_line(grid);
  const int64_t at[3] = {(bin - grid.first_bin) % bins_in_line(grid), line_of_bin % grid.n_bins[1],
                         line_of_bin / grid.n_bins[1]};
  const Surroundings around = surroundings_at(grid, at);
  const int64_t* n_bins = grid.n_bins;
  for (int64_t c = around.low[2]; c <= around.high[2]; ++c) {
    const int64_t image_c = floor_divide(c, n_bins[2]);
    for (int64_t b = around.low[1]; b <= around.high[1]; ++b) {
      const int64_t image_b = floor_divide(b, n_bins[1]);
      const int64_t line = first_bin_of_line(grid, b - image_b * n_bins[1], c - image_c * n_bins[2]);
      for (int64_t run = 0; run < around.n_runs[0]; ++run) {
        const Shift image = {around.first_image + run, image_b, image_c};
        const int64_t first = std::max<int64_t>(around.low[0] - image.a * n_bins[0], 0);
        const int64_t last = std::min(around.high[0] - image.a * n_bins[0], n_bins[0] - 1);
        // bins of a line are contiguous, and so are their particles
        const int64_t begin = particles_.bin_start[static_cast<size_t>(line + first)];
        const int64_t end = particles_.bin_start[static_cast<size_t>(line + last + 1)];
        if (begin == end) continue;
        const Vector3 offset = combine(grid.lattice.vectors, static_cast<double>(image.a), static_cast<double>(image.b),
                                       static_cast<double>(image.c));
        // The copy of the source stands at +image; receiver minus copy is the edge with shift -image.
        const uint32_t code = encode_image(grid, {-image.a, -image.b, -image.c});
        runs_.push_back({begin, end - begin, {offset.x, offset.y, offset.z}, code});
      }
    }
  }
  const auto is_before = [](const SlotRun& u, const SlotRun& v) {
    return u.begin != v.begin ? u.begin < v.begin : u.image < v.image;
  };
  if (!std::is_sorted(runs_.begin(), runs_.end(), is_before)) std::sort(runs_.begin(), runs_.end(), is_before);
}

void Candidates::reserve(int64_t n) {
  if (slot_.size() >= static_cast<size_t>(n)) return;
  const auto room = static_cast<size_t>(n + n / 2);
  memory_ = Workspace(room * (3 * (sizeof(float) + sizeof(double)) + 3 * sizeof(int32_t)), 9);
  near_.x = memory_.take<float>(room), near_.y = memory_.take<float>(room), near_.z = memory_.take<float>(room);
  far_.x = memory_.take<double>(room), far_.y = memory_.take<double>(room), far_.z = memory_.take<double>(room);
  slot_ = memory_.take<int32_t>(room), particle_ = memory_.take<int32_t>(room), image_ = memory_.take<uint32_t>(room);
}

template <class T>
void Candidates::place(PlaceRun<T> kernel, Coordinates<T>& at, double scale) {
  const SlotArrays slots = {particles_.x.data(), particles_.y.data(), particles_.z.data(), particles_.particle.data()};
  const CandidateArrays<T> to = arrays(at);
  int64_t first = 0;
  for (const SlotRun& run : runs_) {
    kernel(slots, run, scale, to, first);
    first += run.n;
  }
  for (; first < n_; ++first) {
    at.x[static_cast<size_t>(first)] = std::numeric_limits<T>::infinity();
    at.y[static_cast<size_t>(first)] = at.z[static_cast<size_t>(first)] = 0;
  }
}

void Candidates::gather(const CellGrid& grid, int64_t bin) {
  constexpr double max_extent = 256.0, max_uncertainty = 1e-3;  // in cutoffs, where float32 is of use
  find_runs(grid, bin);
  const uint32_t home = encode_image(grid, {0, 0, 0});
  const int64_t slot = particles_.bin_start[static_cast<size_t>(bin)];
  are_home_ = !grid.repeats_pairs;
  n_ = 0;
  for (const SlotRun& run : runs_) {
    are_home_ &= run.image == home;
    if (run.image == home && run.begin <= slot && slot < run.begin + run.n) itself_ = run.begin - n_;
    n_ += run.n;
  }
  n_ = (checked_int32(n_, "cutoff: candidates of one bin") + candidate_block - 1) / candidate_block * candidate_block;
  reserve(n_ + candidate_block);

  // A float32 coordinate is off by half an epsilon of the extent, a difference by one, a distance by sqrt(3); with much to spare.
  const double extent = grid.surroundings / cutoff_;
  const double uncertainty = 4.0 * std::numeric_limits<float>::epsilon() * (extent + 1.0) + 2.0 * grid.margin / cutoff_;
  is_far_ = !(extent <= max_extent && uncertainty <= max_uncertainty);
  if (is_far_) {
    place(kernels_.place_double, far_, 1.0);
    const double certain = std::max(cutoff_ - grid.margin, 0.0), possible = cutoff_ + grid.margin;
    far_.certain_sq = certain * certain, far_.possible_sq = possible * possible;
  } else {
    const auto origin = static_cast<size_t>(slot);
    for (SlotRun& run : runs_) {
      run.offset[0] -= particles_.x[origin], run.offset[1] -= particles_.y[origin], run.offset[2] -= particles_.z[origin];
    }
    place(kernels_.place_float, near_, 1.0 / cutoff_);
    near_.certain_sq = static_cast<float>((1.0 - uncertainty) * (1.0 - uncertainty));
    near_.possible_sq = static_cast<float>((1.0 + uncertainty) * (1.0 + uncertainty));
  }
}

}  // namespace glassconv
