// What the warps of a convolution do, decided on the host and passed to the kernels as a parameter.
//
// A warp owns a row (a receiving node). It goes through its edges tile by tile, through the input in chunks of at most 32
// channels of one block, and through the items of each chunk: sets of paths that share a harmonic. A plan is a list of chunks
// and items of bounded size; irreps that need more are several plans, hence several launches.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "../core/conv.h"
#include "../core/coupled_set.h"
#include "../core/spherical_harmonics.h"

namespace glassconv {

// The sets of paths that have code of their own, ordered; a kernel picks by number, in a search that the compiler unrolls.
// Up to l = 3: each path alone, and all paths of equal parity of l_in + l_sh + l_out, and all paths, of each (l_in, l_sh). Any
// selection of paths is made of these. Beyond, each path alone, in kernels of their own: they need many more registers.
template <size_t n>
using PathSets = std::array<PathSet, n>;

inline constexpr int kLowL = 3;

namespace detail {

constexpr unsigned allowed_degrees(int l_in, int l_sh) {
  unsigned degrees = 0;
  for (int l = l_in > l_sh ? l_in - l_sh : l_sh - l_in; l <= l_in + l_sh && l <= kMaxL; ++l) degrees |= 1u << l;
  return degrees;
}

// Calls use(set) for every set with code. `max_entries` bounds (2 l_in + 1) (2 l_sh + 1) n_paths of merged paths.
template <class Use>
constexpr void for_each_path_set(bool high, int max_entries, Use&& use) {
  constexpr unsigned low = (1u << (kLowL + 1)) - 1, even = 0b10101, odd = 0b01010;
  for (int l_in = 0; l_in <= kMaxL; ++l_in) {
    for (int l_sh = 0; l_sh <= kMaxL; ++l_sh) {
      const unsigned all = allowed_degrees(l_in, l_sh);
      const bool is_low = l_in <= kLowL && l_sh <= kLowL;
      for (int l = 0; l <= kMaxL; ++l) {
        if ((all >> l & 1) != 0 && high != (is_low && l <= kLowL)) use(PathSet{l_in, l_sh, 1u << l});
      }
      if (high || !is_low) continue;
      const unsigned sets[] = {all & low & even, all & low & odd, all & low};
      for (int i = 0; i < 3; ++i) {
        const PathSet set{l_in, l_sh, sets[i]};
        const bool is_new = set.n_paths() > 1 && (i == 2 || sets[i] != sets[2]);
        if (is_new && set.n_paths() * (2 * l_in + 1) * (2 * l_sh + 1) <= max_entries) use(set);
      }
    }
  }
}

}  // namespace detail

// Those of low or of high degree. `max_entries` of 0 leaves each path alone.
template <bool high, int max_entries>
constexpr auto list_path_sets() {
  constexpr size_t n = [] {
    size_t count = 0;
    detail::for_each_path_set(high, max_entries, [&](PathSet) { ++count; });
    return count;
  }();
  PathSets<n> sets = {};
  size_t i = 0;
  detail::for_each_path_set(high, max_entries, [&](PathSet set) { sets[i++] = set; });
  return sets;
}

inline constexpr int kMaxPathsOfSet = 4;

struct ConvItem {
  int kind = 0;  // number of the set of paths
  int n_paths = 0;
  int sh = 0;                       // where the harmonic begins in a row of the tile
  int weight[kMaxPathsOfSet] = {};  // columns of the first channel of the block, for each path
  int out[kMaxPathsOfSet] = {};
};

struct ConvChunk {
  int first_column = 0;  // of the chunk in a row of x
  int first_channel = 0;
  int n_channels = 0, d_in = 0;
  int lane_bits = 0;  // 2^lane_bits lanes for one edge: n_channels rounded up to a power of two
  // Of a row of the tile: an odd multiple of n_lanes. Elements of a channel are an odd number of words apart, too, so that all
  // lanes of all slots read from different banks.
  int stride = 0;
  int message = 0;            // column in a row of the messages
  bool adds_message = false;  // another plan has written these columns before
  int first_item = 0, item_end = 0;
};

// A harmonic takes whole groups of four in a row of the tile, so that it is read 16 bytes at a time.
constexpr int padded_harmonic(int l) { return (2 * l + 1 + 3) / 4 * 4; }
// Harmonics that the kernel computes lie one degree after the other.
constexpr int computed_harmonic_tile(int l) {
  int column = 0;
  for (int before = 0; before < l; ++before) column += padded_harmonic(before);
  return column;
}

struct HarmonicBlock {
  int column = 0, l = 0;  // in a row of the harmonics
  int tile = 0;           // in a row of the tile
};

inline constexpr int kMaxChunks = 20, kMaxItems = 48, kMaxHarmonicBlocks = 12, kMaxParts = 8;

struct ConvPlan {
  bool high = false;  // whether the items' sets are those of high degree
  int n_chunks = 0, n_items = 0, n_harmonic_blocks = 0, n_parts = 1;
  int l_max = 0;      // of the harmonics to be computed
  int sh_stride = 0;  // of a row of harmonics in the tile
  int rank = 0, rank_stride = 0;
  int tile_edges = 0;
  int x_stride = 0;                    // largest of the chunks
  int part_begin[kMaxParts + 1] = {};  // chunks of each part; blockIdx.y is the part
  HarmonicBlock harmonics[kMaxHarmonicBlocks];
  ConvChunk chunks[kMaxChunks];
  ConvItem items[kMaxItems];
};
static_assert(sizeof(ConvPlan) < 3600, "kernel parameters are limited to 4 KB");

// What depends on the kernel: its sets of paths, how many edges each lane takes from a tile at most, what a tile takes of shared
// memory, and how much it may take, if it can be made small enough.
struct PlanOptions {
  const PathSet* sets[2];  // of low and of high degree
  int n_sets[2];
  int edges_per_lane;
  size_t (*tile_bytes)(const ConvPlan&);
  size_t max_tile_bytes;
};

// Columns of x that paths read, and where they are in the messages, which hold nothing else.
struct ReadColumns {
  int64_t first, message, width;
};

struct ConvPlans {
  std::vector<ConvPlan> plans;
  std::vector<ReadColumns> columns;
  int64_t message_width = 0;

  int n_parts() const {
    int n = 0;
    for (const ConvPlan& plan : plans) n += plan.n_parts;
    return n;
  }
};

// `input.paths` are sorted by input block; `n_warps` go through the rows. Throws std::invalid_argument for what does not fit 32 bits.
template <class T>
ConvPlans make_plans(const ConvInput<T>& input, const PlanOptions& options, int64_t n_warps);

}  // namespace glassconv
