// The inner loops of the CPU neighbor search, compiled once per instruction set: which candidates are near a particle, and the
// rank of each number in a short list. They know arrays only, nothing of cells and images.
#pragma once

#include "../core/platform.h"

namespace glassconv {

constexpr int64_t candidate_block = 16;  // candidates are padded to a multiple of this, with some that are infinitely far

// Particles that may be near those of one bin: coordinates relative to an origin, in some unit.
template <class T>
struct CandidateArrays {
  T *x, *y, *z;
  int32_t *slot, *particle;
  uint32_t* image;  // null when all are met in the same one
  int64_t n;        // a multiple of candidate_block
};

// Consecutive slots that become candidates: (coordinate + offset) * scale.
struct SlotRun {
  int64_t begin, n;
  double offset[3];
  uint32_t image;
};

// Slots as they are sorted; a run may be read up to candidate_block numbers beyond its end.
struct SlotArrays {
  const double *x, *y, *z;
  const int32_t* particle;
};

// Writes the candidates of a run from `first` on; up to candidate_block more get lost.
template <class T>
using PlaceRun = void (*)(const SlotArrays& slots, const SlotRun& run, double scale, const CandidateArrays<T>& to,
                          int64_t first);

template <class T>
struct RowQuery {
  T x, y, z;
  int64_t itself;  // the candidate to leave out
  T certain_sq, possible_sq;
};

// Lists the candidates with distance_sq < possible_sq in their order, and returns their number. The arrays need room for all
// candidates, and the values of candidate_block more get lost. `is_certain` tells whether all have distance_sq < certain_sq.
struct RowArrays {
  int32_t *slot, *particle;
  uint32_t* image;  // not written when the candidates have none
};
template <class T>
using SelectRow = int64_t (*)(const CandidateArrays<T>&, const RowQuery<T>&, const RowArrays& to, bool* is_certain);

// Writes how many of the n keys are smaller than each, in steps of n * n / lanes. `key` and `rank` have room for candidate_block
// more, which get lost.
template <class Key>
using RankKeys = void (*)(Key* key, int64_t n, int32_t* rank);

// The edges of one receiver, in the order of the sources' slots and, of one source, by image.
struct Row {
  int32_t* list;  // n sources, n ranks, n ranks of the opposites, and n images
  int32_t n;
  int32_t n_lower, n_itself;  // sources that are particles of a lower index, and images of the receiver
  bool has_images;            // else all are met in the home image

  int32_t* source() const { return list; }               // slots
  int32_t* rank() const { return list + n; }             // of each edge in the row as it is sorted in the end
  int32_t* opposite_rank() const { return rank() + n; }  // and of its opposite in its row
  uint32_t* image() const { return reinterpret_cast<uint32_t*>(opposite_rank() + n); }  // codes, see encode_image()
};

// A row to where its edges belong, by rank: the sources, `particle` of their slots, and the opposites, from where the rows of their
// slots begin, `first`.
using WriteRow = void (*)(const Row& row, const int32_t* particle, const int64_t* first, int64_t* source, int64_t* reverse);

// The shifts of a row to where its edges belong, by rank: the fields of its images' codes (see encode_image()), from the lowest
// bits up c, b and a, less `home` of each.
struct ImageFields {
  int32_t bits[3], home[3];
};
using WriteImages = void (*)(const Row& row, const ImageFields& fields, int32_t* shifts);

struct RowKernels {
  SelectRow<float> select_float;
  SelectRow<double> select_double;
  PlaceRun<float> place_float;
  PlaceRun<double> place_double;
  RankKeys<int32_t> rank_sources;
  RankKeys<int64_t> rank_edges;
  WriteRow write_row;
  WriteImages write_images;
};

namespace plain {
RowKernels row_kernels();
}
namespace avx2 {
RowKernels row_kernels();
}
namespace avx512 {
RowKernels row_kernels();
}

// For this machine, see active_isa().
const RowKernels& row_kernels();

}  // namespace glassconv
