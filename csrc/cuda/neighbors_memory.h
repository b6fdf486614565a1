// What the kernels of the neighbor search share: the pieces of the workspace, and the steps as each file offers them to the next.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "../core/neighbor_refusals.h"
#include "../core/neighbor_search.h"
#include "../core/neighbors.h"
#include "device_primitives.h"

namespace glassconv {

struct SearchStatus {
  unsigned long long first_refusal;  // see refusal_code(); 0: none; or not_needed
  int64_t n_edges;
  int64_t n_written;  // of these, the edges of all rows that end within the capacity
};

// Of one system, joined from its particles in any order: maxima, so that zero can stand for "none yet".
struct SystemExtent {
  unsigned long long size;                   // ordered_code() of Extent::size,
  unsigned long long minus_low[3], high[3];  // of -low and of high on open axes
  int32_t begin, end;                        // its particles
};

struct BinRange {
  int32_t begin, end;  // sorted positions; both zero when the bin is empty
};

struct alignas(16) SortedParticle {
  double x, y, z;  // wrapped
  int32_t particle, system;
};

struct SearchMemory {
  // zero at first, in one piece
  SearchStatus* status;
  SystemExtent* extents;  // (n_systems)
  BinRange* bins;         // (n_bins): of each system at most 2 n_particles + 8
  int64_t zeroed_bytes;

  CellGrid* grids;   // (n_systems); the lattices first
  Vector3* wrapped;  // (n_particles), and all that follows
  Wrap* wraps;
  uint32_t* bin;
  int32_t* particle;
  uint32_t* sorted_bin;
  int32_t* sorted_particle;
  SortedParticle* sorted;
  int64_t* row_ptr;  // (n_particles + 1), for outputs that are not to be touched before it is known that they are needed
  PrimitiveWorkspace primitives;

  int64_t n_bins;
  int64_t bytes;  // of all but the primitives' memory
};

// A number that grows with the double, and is above zero for all but NaN.
GLASS_HD inline unsigned long long ordered_code(double value) {
  unsigned long long bits;
  memcpy(&bits, &value, sizeof bits);
  const unsigned long long sign = 1ull << 63;
  return bits & sign ? ~bits : bits | sign;
}

GLASS_HD inline double ordered_value(unsigned long long code) {
  const unsigned long long sign = 1ull << 63, bits = code & sign ? code ^ sign : ~code;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Of the numbers below n.
inline int bits_of(int64_t n) {
  int bits = 1;
  while (int64_t{1} << bits < n) ++bits;
  return bits;
}

// The refusal that is to be reported, the first by phase and then by index, has the largest code. Above all of them is the one
// that stands for outputs which are as they shall be: like a refusal it makes every kernel leave.
constexpr int refusal_index_shift = 4, refusal_phase_shift = 56, first_phase = -1;
constexpr unsigned long long not_needed = ~0ull;

GLASS_HD inline unsigned long long refusal_code(Refusal why, int64_t index) {
  return ~(static_cast<unsigned long long>(phase_of(why) - first_phase + 1) << refusal_phase_shift |
           static_cast<unsigned long long>(index) << refusal_index_shift | static_cast<unsigned long long>(why));
}

// Of not_needed it is before the first.
GLASS_HD inline int phase_of_code(unsigned long long code) {
  return static_cast<int>(~code >> refusal_phase_shift) + first_phase - 1;
}

GLASS_HD inline Refusal refusal_of(unsigned long long code) { return static_cast<Refusal>(~code & 15); }

inline int64_t refusal_index(unsigned long long code) {
  return static_cast<int64_t>((~code & ((1ull << refusal_phase_shift) - 1)) >> refusal_index_shift);
}

// Keys wait for their turn in the output that is written last.
inline EdgeKey* keys_of(const NeighborOutputs& outputs) { return reinterpret_cast<EdgeKey*>(outputs.reverse); }

// neighbors_bins.cu: everything up to `sorted` and `bins`. `needed` is null or as in CapacityOutputs.
void sort_into_bins(const NeighborParams& params, const SearchMemory& memory, const bool* needed, cudaStream_t stream);

// neighbors_search.cu: the lengths of the rows; then, the rows' places being known, their keys in any order.
void count_rows(const NeighborParams& params, const SearchMemory& memory, int64_t* row_ptr, cudaStream_t stream);
void write_keys(const NeighborParams& params, const SearchMemory& memory, const NeighborOutputs& outputs, cudaStream_t stream);

// neighbors_rows.cu: sorts the keys of each row, and writes all outputs from them; then -1 where no edge stands.
void write_rows(const NeighborParams& params, const SearchMemory& memory, const NeighborOutputs& outputs, cudaStream_t stream);
void pad_edges(const SearchMemory& memory, const NeighborOutputs& outputs, int64_t capacity, cudaStream_t stream);

}  // namespace glassconv
