#include "neighbors_rows.h"

#include <limits>
#include <utility>

#include "simd.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace glassconv {
namespace GLASSCONV_ISA {
namespace {

// Bit k tells whether lane k is below the limit.
GLASS_INLINE uint32_t bits_below(const Lanes<float>& v, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(limit), _CMP_LT_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(limit), _CMP_LT_OQ)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmplt_ps((__m128)v, _mm_set1_ps(limit))));
#else
  uint32_t bits = 0;
  for (int k = 0; k < kLanes<float>; ++k) bits |= static_cast<uint32_t>(v[k] < limit) << k;
  return bits;
#endif
}
GLASS_INLINE uint32_t bits_below(const Lanes<double>& v, double limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)v, _mm512_set1_pd(limit), _CMP_LT_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, _mm256_set1_pd(limit), _CMP_LT_OQ)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_pd(_mm_cmplt_pd((__m128d)v, _mm_set1_pd(limit))));
#else
  uint32_t bits = 0;
  for (int k = 0; k < kLanes<double>; ++k) bits |= static_cast<uint32_t>(v[k] < limit) << k;
  return bits;
#endif
}

// Appends those of the candidate_block values whose bits are set. `to` has room for all.
template <class Value>
GLASS_INLINE void append_chosen(const Value* from, uint32_t bits, Value* to) {
#if defined(__AVX512F__)
  const __m512i chosen = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(from));
  _mm512_storeu_si512(to, chosen);
#else
  for (; bits != 0; bits &= bits - 1) *to++ = from[__builtin_ctz(bits)];
#endif
}

template <class T>
int64_t select_row(const CandidateArrays<T>& candidates, const RowQuery<T>& query, const RowArrays& to, bool* is_certain) {
  constexpr int width = kLanes<T>;
  const T own_x = candidates.x[query.itself];
  candidates.x[query.itself] = std::numeric_limits<T>::infinity();
  int64_t found = 0;
  uint32_t uncertain = 0;
  for (int64_t first = 0; first < candidates.n; first += candidate_block) {
    uint32_t near = 0, certain = 0;
#pragma GCC unroll 8
    for (int part = 0; part < candidate_block; part += width) {
      const Lanes<T> dx = load(candidates.x + first + part) - query.x, dy = load(candidates.y + first + part) - query.y,
                     dz = load(candidates.z + first + part) - query.z;
      const Lanes<T> distance_sq = dx * dx + dy * dy + dz * dz;
      near |= bits_below(distance_sq, query.possible_sq) << part;
      certain |= bits_below(distance_sq, query.certain_sq) << part;
    }
    uncertain |= near ^ certain;
    append_chosen(candidates.slot + first, near, to.slot + found);
    append_chosen(candidates.particle + first, near, to.particle + found);
    if (candidates.image != nullptr) append_chosen(candidates.image + first, near, to.image + found);
    found += __builtin_popcount(near);
  }
  candidates.x[query.itself] = own_x;
  *is_certain = uncertain == 0;
  return found;
}

template <class T>
GLASS_INLINE void place(const double* from, int64_t n, double offset, double scale, T* to) {
  constexpr int width = kLanes<double>;
  typedef T Placed __attribute__((vector_size(width * sizeof(T))));
  for (int64_t k = 0; k < n; k += width) {
    const Placed placed = __builtin_convertvector((load(from + k) + offset) * scale, Placed);
    memcpy(to + k, &placed, sizeof placed);
  }
}

template <class T>
void place_run(const SlotArrays& slots, const SlotRun& run, double scale, const CandidateArrays<T>& to, int64_t first) {
  constexpr int width = kLanes<int32_t>;
  place(slots.x + run.begin, run.n, run.offset[0], scale, to.x + first);
  place(slots.y + run.begin, run.n, run.offset[1], scale, to.y + first);
  place(slots.z + run.begin, run.n, run.offset[2], scale, to.z + first);
  Lanes<int32_t> slot;
  for (int k = 0; k < width; ++k) slot[k] = static_cast<int32_t>(run.begin) + k;
  for (int64_t k = 0; k < run.n; k += width) {
    store(to.slot + first + k, slot);
    store(to.particle + first + k, load(slots.particle + run.begin + k));
    slot += width;
  }
  if (to.image == nullptr) return;
  for (int64_t k = 0; k < run.n; k += width) store(to.image + first + k, Lanes<uint32_t>{} + run.image);
}

template <class Key>
void rank_keys(Key* key, int64_t n, int32_t* rank) {
  constexpr int width = kLanes<Key>;
  int64_t n_ascending = 1;  // from the first key on; most rows end this soon
  while (n_ascending < n && key[n_ascending - 1] < key[n_ascending]) ++n_ascending;
  if (n_ascending >= n) {
    for (int64_t k = 0; k < n; ++k) rank[k] = static_cast<int32_t>(k);
    return;
  }
  for (int64_t first = 0; first < n; first += width) {
    const Lanes<Key> keys = load(key + first);
    Lanes<Key> smaller = {};
#if defined(__AVX512F__)
    if constexpr (sizeof(Key) == 4) {
      __m512i count = _mm512_setzero_si512();
      const __m512i one = _mm512_set1_epi32(1);
      for (int64_t k = 0; k < n; ++k) {
        count = _mm512_mask_add_epi32(count, _mm512_cmpgt_epi32_mask((__m512i)keys, _mm512_set1_epi32(key[k])), count, one);
      }
      _mm512_storeu_si512(rank + first, count);
      continue;
    }
#endif
    for (int64_t k = 0; k < n; ++k) smaller -= keys > key[k];  // true is -1
    for (int k = 0; k < width; ++k) rank[first + k] = static_cast<int32_t>(smaller[k]);
  }
}

void write_row(const Row& row, const int32_t* particle, const int64_t* first, int64_t* source, int64_t* reverse) {
  const int32_t n = row.n, *const slot = row.list, *const rank = slot + n, *const opposite_rank = rank + n;
  for (int32_t k = 0; k < n; ++k) {
    source[rank[k]] = particle[slot[k]];
    reverse[rank[k]] = first[slot[k]] + opposite_rank[k];
  }
}

void write_images(const Row& row, const ImageFields& fields, int32_t* shifts) {
  const int32_t n = row.n, *const rank = row.list + n;
  const uint32_t* const image = reinterpret_cast<const uint32_t*>(row.list + 3 * n);
  const int32_t bits_b = fields.bits[1], bits_c = fields.bits[2];
  const uint32_t mask_b = (1u << bits_b) - 1u, mask_c = (1u << bits_c) - 1u;
  for (int32_t k = 0; k < n; ++k) {
    int32_t* const to = shifts + 3 * static_cast<int64_t>(rank[k]);
    to[0] = static_cast<int32_t>(image[k] >> bits_c >> bits_b) - fields.home[0];
    to[1] = static_cast<int32_t>(image[k] >> bits_c & mask_b) - fields.home[1];
    to[2] = static_cast<int32_t>(image[k] & mask_c) - fields.home[2];
  }
}

}  // namespace

RowKernels row_kernels() {
  return {&select_row<float>,  &select_row<double>, &place_run<float>, &place_run<double>,
          &rank_keys<int32_t>, &rank_keys<int64_t>, &write_row,        &write_images};
}

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
