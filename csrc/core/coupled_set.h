// Several paths that share an input block and a harmonic, contracted together: (l_in, l_sh) with a set of l_out.
//
// With one path after the other every input and every product x[m_in] y[m_sh] would be fetched and formed again for each l_out.
// The set is a template argument, so all loops over couplings are unrolled and the couplings become constants of the code.
#pragma once

#include <array>
#include <utility>

#include "tensor_product.h"

namespace glassconv {

// Which paths: bit l of `l_out` stands for the path to degree l.
struct PathSet {
  int l_in = 0, l_sh = 0;
  unsigned l_out = 0;

  constexpr bool operator==(const PathSet&) const = default;
  constexpr int n_paths() const {
    int n = 0;
    for (unsigned bits = l_out; bits != 0; bits &= bits - 1) ++n;
    return n;
  }
  constexpr int degree(int path) const {  // l_out of the path-th path
    int l = 0;
    for (; path > 0 || (l_out >> l & 1) == 0; ++l) path -= static_cast<int>(l_out >> l & 1);
    return l;
  }
};

namespace detail {

template <class F, int... i>
GLASS_INLINE void call_with_constants(F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>{}), ...);
}

}  // namespace detail

// Calls f(std::integral_constant<int, i>) for i = 0 .. n - 1.
template <int n, class F>
GLASS_INLINE void for_each_constant(F&& f) {
  detail::call_with_constants(f, std::make_integer_sequence<int, n>{});
}

namespace detail {

// One coupling of a set: out[component] += value * in[m_in] * sh[m_sh].
struct Term {
  int m_in = 0, m_sh = 0, component = 0;
  double value = 0.0;
  bool is_first = false;  // of those with this product of m_in and m_sh
};

template <PathSet set, int path>
using TableOf = ClebschGordan<set.l_in, set.l_sh, set.degree(path)>;

template <PathSet set, int path, class Terms>
constexpr int append_terms(Terms& terms, int n, int first_component) {
  for (const Coupling& entry : TableOf<set, path>::entries) {
    terms[static_cast<size_t>(n++)] = {entry.m_in, entry.m_sh, first_component + entry.m_out, entry.value, false};
  }
  return n;
}

// All couplings of the set, those that use the same product of inputs next to each other.
template <PathSet set, int... path>
constexpr auto list_terms(std::integer_sequence<int, path...>) {
  std::array<Term, static_cast<size_t>((kCouplings<TableOf<set, path>> + ...))> terms = {};
  int n = 0, component = 0;
  ((n = append_terms<set, path>(terms, n, component), component += 2 * set.degree(path) + 1), ...);
  const auto product = [](const Term& term) { return term.m_in * 16 + term.m_sh; };
  for (size_t i = 1; i < terms.size(); ++i) {  // insertion keeps the order of the paths
    const Term term = terms[i];
    size_t at = i;
    for (; at > 0 && product(terms[at - 1]) > product(term); --at) terms[at] = terms[at - 1];
    terms[at] = term;
  }
  for (size_t i = 0; i < terms.size(); ++i) terms[i].is_first = i == 0 || product(terms[i - 1]) != product(terms[i]);
  return terms;
}

}  // namespace detail

namespace GLASSCONV_ISA {

template <PathSet set>
struct CoupledSet {
  static constexpr int d_in = 2 * set.l_in + 1, d_sh = 2 * set.l_sh + 1, n_paths = set.n_paths();

  // The matrix of a path for the gradients: its coupling contracted with the gradient of its output.
  template <int path>
  using Gradient = CoupledMatrix<Triple<set.l_in, set.l_sh, set.degree(path)>, SumOver::kOut>;
  template <int path>
  static constexpr int d_out = 2 * set.degree(path) + 1;

  // Where a path's components, and the entries of its matrix, begin among those of all paths of the set.
  static constexpr int first_out(int path) {
    int first = 0;
    for (int p = 0; p < path; ++p) first += 2 * set.degree(p) + 1;
    return first;
  }
  static constexpr int first_pair(int path) { return first_pair(path, std::make_integer_sequence<int, n_paths>{}); }
  static constexpr int n_out = first_out(n_paths), n_pairs = first_pair(n_paths);

  // out[component] += sum C product(m_in, m_sh), for the components of all paths.
  template <class T, class Product>
  static GLASS_INLINE void contract(Product&& product, T* out) {
    T current = T(0);
    for_each_constant<static_cast<int>(kTerms.size())>([&](auto index) {
      constexpr detail::Term term = kTerms[index()];
      if constexpr (term.is_first)
        current = product(std::integral_constant<int, term.m_in>{}, std::integral_constant<int, term.m_sh>{});
      out[term.component] += static_cast<T>(term.value) * current;
    });
  }

 private:
  static constexpr auto kTerms = detail::list_terms<set>(std::make_integer_sequence<int, n_paths>{});

  template <int... path>
  static constexpr int first_pair(int until, std::integer_sequence<int, path...>) {
    return ((path < until ? Gradient<path>::n_pairs : 0) + ...);
  }
};

}  // namespace GLASSCONV_ISA
}  // namespace glassconv
