// A neighbor list reduced to a smaller cutoff. A task is a run of candidates, the edges of the larger list: each is decided by the
// definition, which leaves a bit; the bits before it are the number of its place in the result, and in that of its opposite.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>

#include "../core/neighbor_refusals.h"
#include "neighbors_cells.h"

namespace glassconv {
namespace {

constexpr int64_t ahead = 32;  // candidates whose data is fetched before they are looked at: sources may be far apart
constexpr int64_t word_bits = 64, words_per_task = 64, candidates_per_task = words_per_task * word_bits;

// Of candidates that follow each other, those that are kept.
struct Word {
  uint64_t bits;
  int64_t before;  // kept in the words before this one
};

// Of a task's candidates, whether they are kept. Not chars, which could be anything's bytes: numbers would be read again after each.
using Flags = std::array<bool, candidates_per_task>;

uint64_t pack(const bool* flags) {
  static_assert(std::endian::native == std::endian::little && sizeof(bool) == 1);
  uint64_t bits = 0;
  for (int k = 0; k < 8; ++k) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, flags + 8 * k, 8);
    bits |=
        (bytes * 0x0102040810204080u) >> 56 << 8 * k;  // the product gathers the lowest bits of all bytes in its highest byte
  }
  return bits;
}

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

[[noreturn]] void refuse_source(const NeighborParams& params, int64_t source, int64_t edge) {
  refuse("edge_index: expected particles from 0 to " + std::to_string(params.n_particles - 1) + ", got " +
         std::to_string(source) + " at edge " + std::to_string(edge));
}

[[noreturn]] void refuse_reverse(int64_t opposite, int64_t edge) {
  refuse("reverse: expected the opposite of each edge, got " + std::to_string(opposite) + " at edge " + std::to_string(edge));
}

// Of what the search refuses, all that could be used as an index here or make no sense of a distance.
void check_particle(const NeighborParams& params, int64_t i) {
  RefusedValues got;
  got.n_systems = params.n_systems;
  got.system = params.batch[i];
  if (got.system < 0 || got.system >= params.n_systems) refuse(refusal_message(Refusal::batch, i, got));
  const Vector3 r = position_of(params, i);
  if (is_finite(r) && largest_component(r) <= max_length) return;
  std::copy_n(params.positions + 3 * i, 3, got.position);
  refuse(refusal_message(Refusal::position_out_of_range, i, got));
}

void check_rows(const NeighborParams& params, const NeighborCandidates& candidates) {
  const int64_t n = params.n_particles, first = candidates.row_ptr[0], last = candidates.row_ptr[n];
  if (first != 0 || last != candidates.n_edges) {
    refuse("row_ptr: expected from 0 to the number of edges, " + std::to_string(candidates.n_edges) + ", got from " +
           std::to_string(first) + " to " + std::to_string(last));
  }
  for (int64_t i = 0; i < n; ++i) {
    check_particle(params, i);
    const int64_t begin = candidates.row_ptr[i], end = candidates.row_ptr[i + 1];
    if (begin <= end) continue;
    refuse("row_ptr: expected non-decreasing numbers, got " + std::to_string(end) + " after " + std::to_string(begin) +
           " at particle " + std::to_string(i));
  }
}

}  // namespace

struct NeighborFilterCpu::State {
  NeighborParams params;
  NeighborCandidates candidates;
  Executor executor;
  std::unique_ptr<Word[]> words;  // the last one ends behind the last candidate

  int64_t n_words() const { return candidates.n_edges / word_bits + 1; }

  int64_t receiver_of(int64_t candidate) const {
    const int64_t* const rows = candidates.row_ptr;
    return std::upper_bound(rows, rows + params.n_particles + 1, candidate) - rows - 1;
  }

  template <class Body>
  void for_each_task_of_candidates(Body&& body) const {
    for_each_task(executor, (candidates.n_edges + candidates_per_task - 1) / candidates_per_task, body);
  }

  // How many candidates before this one are kept.
  int64_t place_of(int64_t candidate) const {
    const Word& word = words[static_cast<size_t>(candidate / word_bits)];
    return word.before + std::popcount(word.bits & ((uint64_t{1} << candidate % word_bits) - 1));
  }

  bool is_kept(int64_t candidate) const {
    return (words[static_cast<size_t>(candidate / word_bits)].bits >> candidate % word_bits & 1) != 0;
  }

  void decide(int64_t task);
  void decide_row(int64_t receiver, int64_t begin, int64_t end, bool* flags) const;
  template <bool has_shifts, bool has_types>
  void decide_edges(int64_t receiver, int64_t begin, int64_t end, bool* flags) const;
  void write(int64_t task, const NeighborOutputs& outputs) const;
};

void NeighborFilterCpu::State::decide(int64_t task) {
  Flags flags = {};
  const int64_t first = task * candidates_per_task, last = std::min(first + candidates_per_task, candidates.n_edges);
  int64_t receiver = receiver_of(first);
  for (int64_t begin = first; begin < last; ++receiver) {
    const int64_t end = std::min(last, candidates.row_ptr[receiver + 1]);
    decide_row(receiver, begin, end, flags.data() + (begin - first));
    begin = end;
  }
  const int64_t first_word = task * words_per_task, last_word = std::min(first_word + words_per_task, n_words());
  for (int64_t w = first_word; w < last_word; ++w) {
    words[static_cast<size_t>(w)].bits = pack(flags.data() + (w - first_word) * word_bits);
  }
}

void NeighborFilterCpu::State::decide_row(int64_t receiver, int64_t begin, int64_t end, bool* flags) const {
  int32_t any_shift = 0;
  for (int64_t k = 3 * begin; k < 3 * end; ++k) any_shift |= candidates.shifts[k];
  // Without shifts a zero would be added, which changes no square.
  if (params.types != nullptr) {
    any_shift == 0 ? decide_edges<false, true>(receiver, begin, end, flags)
                   : decide_edges<true, true>(receiver, begin, end, flags);
  } else {
    any_shift == 0 ? decide_edges<false, false>(receiver, begin, end, flags)
                   : decide_edges<true, false>(receiver, begin, end, flags);
  }
}

// Without branches on what is decided: it follows no pattern.
template <bool has_shifts, bool has_types>
void NeighborFilterCpu::State::decide_edges(int64_t receiver, int64_t begin, int64_t end, bool* flags) const {
  const Vector3 r = position_of(params, receiver);
  const double* c = params.cells + 9 * params.batch[receiver];
  const Vector3 cell[3] = {{c[0], c[1], c[2]}, {c[3], c[4], c[5]}, {c[6], c[7], c[8]}};
  const auto n_particles = static_cast<uint64_t>(params.n_particles);
  const double cutoff_sq = params.cutoff * params.cutoff;
  for (int64_t candidate = begin; candidate < end; ++candidate) {
    const int64_t source = candidates.source[candidate];
    const int64_t next = candidates.source[std::min(candidate + ahead, candidates.n_edges - 1)];
    if (static_cast<uint64_t>(next) < n_particles) __builtin_prefetch(params.positions + 3 * next);
    if (static_cast<uint64_t>(source) >= n_particles) refuse_source(params, source, candidate);
    Vector3 moved = {0.0, 0.0, 0.0};
    if (has_shifts) {
      const int32_t* shift = candidates.shifts + 3 * candidate;
      moved = combine(cell, shift[0], shift[1], shift[2]);
    }
    const double limit_sq = has_types ? cutoff_sq_of(params, receiver, source) : cutoff_sq;
    *flags++ = distance_sq_between(r, position_of(params, source), moved) < limit_sq;
  }
}

void NeighborFilterCpu::State::write(int64_t task, const NeighborOutputs& outputs) const {
  const int64_t first_word = task * words_per_task, last_word = std::min(first_word + words_per_task, n_words());
  int64_t receiver = receiver_of(first_word * word_bits);
  for (int64_t w = first_word; w < last_word; ++w) {
    int64_t place = words[static_cast<size_t>(w)].before;
    for (uint64_t bits = words[static_cast<size_t>(w)].bits; bits != 0; bits &= bits - 1, ++place) {
      const int64_t candidate = w * word_bits + std::countr_zero(bits), opposite = candidates.reverse[candidate];
      const int64_t next = candidates.reverse[std::min(candidate + ahead, candidates.n_edges - 1)];
      if (static_cast<uint64_t>(next) < static_cast<uint64_t>(candidates.n_edges))
        __builtin_prefetch(&words[static_cast<size_t>(next / word_bits)]);
      if (static_cast<uint64_t>(opposite) >= static_cast<uint64_t>(candidates.n_edges) || !is_kept(opposite)) {
        refuse_reverse(opposite, candidate);
      }
      while (candidates.row_ptr[receiver + 1] <= candidate) ++receiver;
      outputs.source[place] = candidates.source[candidate];
      outputs.receiver[place] = receiver;
      for (int axis = 0; axis < 3; ++axis) outputs.shifts[3 * place + axis] = candidates.shifts[3 * candidate + axis];
      outputs.reverse[place] = place_of(opposite);
    }
  }
}

NeighborFilterCpu::NeighborFilterCpu(const NeighborParams& params, const NeighborCandidates& candidates,
                                     const Executor& executor) {
  check_rows(params, candidates);
  state_ = std::make_unique<State>(State{params, candidates, executor, nullptr});
  const auto n_words = static_cast<size_t>(state_->n_words());
  state_->words = std::make_unique<Word[]>(n_words);
  state_->for_each_task_of_candidates([&](int64_t task) { state_->decide(task); });
  Word* const words = state_->words.get();
  for (size_t w = 0; w + 1 < n_words; ++w) words[w + 1].before = words[w].before + std::popcount(words[w].bits);
}

NeighborFilterCpu::~NeighborFilterCpu() = default;

int64_t NeighborFilterCpu::n_edges() const { return state_->place_of(state_->candidates.n_edges); }

void NeighborFilterCpu::write(const NeighborOutputs& outputs) {
  const State& state = *state_;
  for (int64_t i = 0; i <= state.params.n_particles; ++i) outputs.row_ptr[i] = state.place_of(state.candidates.row_ptr[i]);
  state.for_each_task_of_candidates([&](int64_t task) { state.write(task, outputs); });
}

}  // namespace glassconv
