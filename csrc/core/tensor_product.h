// The Clebsch-Gordan contraction of one path, once for every backend.
//
// A coupling tensor C[in][sh][out] contracted with one of its three arguments is a small sparse matrix between the other two.
// Everything the convolution and its derivatives need is such a matrix and its product with a vector, from either side:
//
//   SumOverSh   A[in][out] = sum_sh  C Y      formed once per edge, shared by all channels   -> forward
//   SumOverOut  Q[in][sh]  = sum_out C g      formed once per row and channel, shared by all edges -> both gradients
//
// V is the type that computes: float or double for one edge (a CUDA thread), or a SIMD vector holding several edges.
// All loops over couplings are unrolled at compile time; the couplings become constants of the code.
#pragma once

#include <utility>

#include "clebsch_gordan.h"
#include "platform.h"

namespace glassconv {

// Which argument of the coupling is summed away.
enum class SumOver { kSh, kOut };

namespace detail {

struct Pair {
  int row = 0, col = 0;
};

template <class G>
inline constexpr int kCouplings = static_cast<int>(sizeof(G::entries) / sizeof(G::entries[0]));

constexpr Pair pair_of(const Coupling& entry, SumOver sum) {
  return sum == SumOver::kSh ? Pair{entry.m_in, entry.m_out} : Pair{entry.m_in, entry.m_sh};
}

template <class G>
struct PairList {
  Pair pairs[kCouplings<G>] = {};
  int of_entry[kCouplings<G>] = {};  // the pair to which each coupling contributes
  bool first[kCouplings<G>] = {};    // whether it is the first to contribute to it
  int n_pairs = 0;
};

template <class G>
constexpr PairList<G> list_pairs(SumOver sum) {
  PairList<G> list;
  for (int i = 0; i < kCouplings<G>; ++i) {
    const Pair pair = pair_of(G::entries[i], sum);
    int found = 0;
    while (found < list.n_pairs && (list.pairs[found].row != pair.row || list.pairs[found].col != pair.col)) ++found;
    list.first[i] = found == list.n_pairs;
    if (list.first[i]) list.pairs[list.n_pairs++] = pair;
    list.of_entry[i] = found;
  }
  return list;
}

}  // namespace detail

namespace GLASSCONV_ISA {

template <int l_in_, int l_sh_, int l_out_>
struct Triple {
  using Table = ClebschGordan<l_in_, l_sh_, l_out_>;
  static constexpr int d_in = 2 * l_in_ + 1, d_sh = 2 * l_sh_ + 1, d_out = 2 * l_out_ + 1;
};

// The sparse matrix between `m_in` (rows) and the index that is not summed away (columns), as its nonzero entries in order.
// T is the scalar type of the couplings; a matrix of entries of type M takes part in products with vectors of type V when
// M * V is defined, so rows of scalars serve vectors of edges.
template <class Triple, SumOver sum>
struct CoupledMatrix {
  using Table = typename Triple::Table;
  static constexpr auto kList = detail::list_pairs<Table>(sum);
  static constexpr int n_pairs = kList.n_pairs;
  using Entries = std::make_integer_sequence<int, detail::kCouplings<Table>>;
  using Pairs = std::make_integer_sequence<int, n_pairs>;

  // matrix[pair * stride] = sum C summed[m]
  template <class T, class V>
  static GLASS_INLINE void form(const V* summed, V* matrix, int stride = 1) {
    form<T>(summed, matrix, stride, Entries{});
  }
  // out[col] += sum_row in[row] matrix[row][col]
  template <class M, class V>
  static GLASS_INLINE void from_rows(const V* in, const M* matrix, V* out, int stride = 1) {
    from_rows(in, matrix, out, stride, Pairs{});
  }
  // out[row] += sum_col matrix[row][col] in[col]
  template <class M, class V>
  static GLASS_INLINE void from_cols(const V* in, const M* matrix, V* out, int stride = 1) {
    from_cols(in, matrix, out, stride, Pairs{});
  }

 private:
  static constexpr int summed_index(int entry) {
    return sum == SumOver::kSh ? Table::entries[entry].m_sh : Table::entries[entry].m_out;
  }
  template <class T, int entry, class V>
  static GLASS_INLINE void form_one(const V* summed, V* matrix, int stride) {
    constexpr T value = static_cast<T>(Table::entries[entry].value);
    constexpr int pair = kList.of_entry[entry], m = summed_index(entry);
    if constexpr (kList.first[entry]) {
      matrix[pair * stride] = summed[m] * value;
    } else {
      matrix[pair * stride] += summed[m] * value;
    }
  }
  template <class T, class V, int... entry>
  static GLASS_INLINE void form(const V* summed, V* matrix, int stride, std::integer_sequence<int, entry...>) {
    (form_one<T, entry>(summed, matrix, stride), ...);
  }
  template <class M, class V, int... pair>
  static GLASS_INLINE void from_rows(const V* in, const M* matrix, V* out, int stride, std::integer_sequence<int, pair...>) {
    ((out[kList.pairs[pair].col] += in[kList.pairs[pair].row] * matrix[pair * stride]), ...);
  }
  template <class M, class V, int... pair>
  static GLASS_INLINE void from_cols(const V* in, const M* matrix, V* out, int stride, std::integer_sequence<int, pair...>) {
    ((out[kList.pairs[pair].row] += in[kList.pairs[pair].col] * matrix[pair * stride]), ...);
  }
};

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
