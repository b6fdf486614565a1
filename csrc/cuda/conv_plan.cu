// Host code only: from the list of paths to plans.
#include "conv_plan.h"

#include <bit>

namespace glassconv {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxTileEdges = 64;
constexpr int64_t kEnoughWarps = 2048;  // more fill any GPU; with fewer, parts add parallelism
constexpr int64_t kMaxRank = 1 << 20;

int narrow(int64_t value) {
  if (value > 0x7fffffff) {
    throw std::invalid_argument("glassconv: irreps: expected rows of fewer than 2^31 elements, got " + std::to_string(value));
  }
  return static_cast<int>(value);
}

// Rows of 16-byte groups whose number is odd: rows that several slots read at once lie in different banks.
int padded_row(int width) {
  const int groups = (width + 3) / 4;
  return 4 * (groups | 1);
}

// Paths of one input block and one harmonic.
struct Pair {
  int l_in, l_sh;
  int64_t sh_offset;
  std::vector<const ConvPath*> paths;
};

class Planner {
 public:
  Planner(int64_t n_warps, bool given_sh, int64_t dim_sh, int64_t rank, const PlanOptions& options)
      : n_warps_(n_warps), given_sh_(given_sh), rank_(rank), options_(options) {
    if (!given_sh) {
      while (n_harmonics(l_max_) < dim_sh) ++l_max_;
    }
  }

  // Goes through the paths of low degree of all input blocks, then through those of high degree.
  ConvPlans run(const ConvPath* paths, int64_t n_paths) {
    ConvPlans result;
    for (const bool high : {false, true}) {
      high_ = high;
      message_ = 0;
      for (int64_t first = 0; first < n_paths;) {
        int64_t last = first + 1;
        while (last < n_paths && paths[last].in_offset == paths[first].in_offset) ++last;
        if (!high) add_columns(paths[first], result.columns);
        add_block(paths + first, paths + last);
        message_ += width_of(paths[first]);
        first = last;
      }
      result.message_width = message_;
      if (plan_.n_chunks > 0) close();
    }
    result.plans = std::move(plans_);
    return result;
  }

 private:
  static bool is_high(const ConvPath& path) { return std::max({path.l_in, path.l_sh, path.l_out}) > kLowL; }
  static int64_t width_of(const ConvPath& block) { return block.n_channels * (2 * block.l_in + 1); }

  void add_columns(const ConvPath& block, std::vector<ReadColumns>& columns) const {
    const int64_t width = width_of(block);
    if (!columns.empty() && columns.back().first + columns.back().width == block.in_offset) {
      columns.back().width += width;
    } else {
      columns.push_back({block.in_offset, message_, width});
    }
  }

  void add_block(const ConvPath* begin, const ConvPath* end) {
    std::vector<std::pair<ConvItem, HarmonicBlock>> items;
    for (Pair& pair : pairs_of(begin, end)) split(pair, items);
    size_t first = 0;
    bool adds_message = high_ && !std::all_of(begin, end, is_high);  // to that of the paths of low degree
    while (first < items.size()) {
      // As many items as the open plan has room for, each chunk of the block with all of them.
      if (!has_room(items[first].second)) close();
      size_t last = first;
      const int first_item = plan_.n_items;
      while (last < items.size() && has_room(items[last].second)) {
        ConvItem item = items[last].first;
        item.sh = tile_of(items[last].second);
        plan_.items[plan_.n_items++] = item;
        ++last;
      }
      add_chunks(*begin, first_item, adds_message, {&items[first], &items[first] + (last - first)});
      adds_message = true;
      first = last;
    }
  }

  using Items = std::pair<const std::pair<ConvItem, HarmonicBlock>*, const std::pair<ConvItem, HarmonicBlock>*>;

  std::vector<Pair> pairs_of(const ConvPath* begin, const ConvPath* end) const {
    std::vector<Pair> pairs;
    for (const ConvPath* path = begin; path < end; ++path) {
      if (is_high(*path) != high_) continue;
      const auto same = std::find_if(pairs.begin(), pairs.end(), [&](const Pair& pair) {
        return pair.sh_offset == path->sh_offset && pair.l_sh == path->l_sh;
      });
      Pair& pair =
          same != pairs.end() ? *same : pairs.emplace_back(Pair{narrow(path->l_in), narrow(path->l_sh), path->sh_offset, {}});
      pair.paths.push_back(path);
    }
    return pairs;
  }

  // The pair's paths as the fewest sets that have code: the largest set contained in what is left, until nothing is.
  void split(Pair& pair, std::vector<std::pair<ConvItem, HarmonicBlock>>& items) const {
    std::vector<const ConvPath*>& left = pair.paths;
    const PathSet* const sets = options_.sets[high_];
    while (!left.empty()) {
      unsigned degrees = 0;
      for (const ConvPath* path : left) degrees |= 1u << path->l_out;
      int best = -1;
      for (int kind = 0; kind < options_.n_sets[high_]; ++kind) {
        const PathSet& set = sets[kind];
        if (set.l_in != pair.l_in || set.l_sh != pair.l_sh || (set.l_out & ~degrees) != 0) continue;
        if (best < 0 || set.n_paths() > sets[best].n_paths()) best = kind;
      }
      const PathSet& set = sets[best];
      ConvItem item;
      item.kind = best;
      item.n_paths = set.n_paths();
      for (int p = 0; p < item.n_paths; ++p) {
        const auto path = std::find_if(left.begin(), left.end(), [&](const ConvPath* q) { return q->l_out == set.degree(p); });
        item.weight[p] = narrow((*path)->weight_offset);
        item.out[p] = narrow((*path)->out_offset);
        left.erase(path);
      }
      items.push_back({item, {narrow(pair.sh_offset), pair.l_sh, 0}});
    }
  }

  const HarmonicBlock* find(const HarmonicBlock& block) const {
    const HarmonicBlock* const end = plan_.harmonics + plan_.n_harmonic_blocks;
    const auto same = [&](const HarmonicBlock& other) { return other.column == block.column && other.l == block.l; };
    const HarmonicBlock* const found = std::find_if(plan_.harmonics, end, same);
    return found == end ? nullptr : found;
  }

  bool has_room(const HarmonicBlock& block) const {
    return plan_.n_items < kMaxItems && plan_.n_chunks < kMaxChunks &&
           (find(block) != nullptr || plan_.n_harmonic_blocks < kMaxHarmonicBlocks);
  }

  int tile_of(HarmonicBlock block) {
    if (const HarmonicBlock* const found = find(block)) return found->tile;
    block.tile = given_sh_ ? sh_width_ : computed_harmonic_tile(block.l);
    sh_width_ += padded_harmonic(block.l);
    plan_.harmonics[plan_.n_harmonic_blocks++] = block;
    return block.tile;
  }

  // The chunks of a block, all with the items from first_item on; a plan that is full is closed and its successor gets a copy.
  void add_chunks(const ConvPath& block, int first_item, bool adds_message, Items items) {
    const int d_in = narrow(2 * block.l_in + 1), n_channels = narrow(block.n_channels);
    for (int channel = 0; channel < n_channels; channel += kLanes) {
      if (plan_.n_chunks == kMaxChunks) {
        close();
        first_item = 0;
        for (auto item = items.first; item < items.second; ++item) {
          ConvItem copy = item->first;
          copy.sh = tile_of(item->second);
          plan_.items[plan_.n_items++] = copy;
        }
      }
      ConvChunk& chunk = plan_.chunks[plan_.n_chunks++];
      chunk.first_channel = channel;
      chunk.n_channels = std::min(kLanes, n_channels - channel);
      chunk.d_in = d_in;
      chunk.first_column = narrow(block.in_offset + int64_t{channel} * d_in);
      chunk.lane_bits = std::bit_width(static_cast<unsigned>(chunk.n_channels - 1));
      chunk.stride = 1 << chunk.lane_bits;
      while (chunk.stride < chunk.n_channels * d_in) chunk.stride += 2 << chunk.lane_bits;
      chunk.message = narrow(message_ + int64_t{channel} * d_in);
      chunk.adds_message = adds_message;
      chunk.first_item = first_item;
      chunk.item_end = plan_.n_items;
    }
  }

  void close() {
    int widest = 1;
    plan_.x_stride = 0;
    for (int c = 0; c < plan_.n_chunks; ++c) {
      widest = std::max(widest, 1 << plan_.chunks[c].lane_bits);
      plan_.x_stride = std::max(plan_.x_stride, plan_.chunks[c].stride);
    }
    plan_.high = high_;
    plan_.l_max = l_max_;
    plan_.sh_stride = padded_row(given_sh_ ? sh_width_ : computed_harmonic_tile(l_max_ + 1));
    plan_.rank = narrow(rank_);
    plan_.rank_stride = rank_ > 0 ? padded_row(narrow(rank_)) : 0;
    const int64_t wanted = kEnoughWarps / std::max<int64_t>(n_warps_, 1);
    plan_.n_parts = narrow(std::clamp<int64_t>(wanted, 1, std::min(plan_.n_chunks, kMaxParts)));
    plan_.tile_edges = std::min(kMaxTileEdges, options_.edges_per_lane * (kLanes / widest));
    while (plan_.tile_edges > 1 && options_.tile_bytes(plan_) > options_.max_tile_bytes) plan_.tile_edges /= 2;
    for (int part = 0; part <= plan_.n_parts; ++part) plan_.part_begin[part] = plan_.n_chunks * part / plan_.n_parts;
    plans_.push_back(plan_);
    plan_ = ConvPlan();
    sh_width_ = 0;
  }

  int64_t n_warps_;
  bool given_sh_;
  int l_max_ = 0;
  int64_t rank_;
  PlanOptions options_;
  ConvPlan plan_;
  int sh_width_ = 0;
  bool high_ = false;
  int64_t message_ = 0;  // columns of the blocks before the current one
  std::vector<ConvPlan> plans_;
};

}  // namespace

template <class T>
ConvPlans make_plans(const ConvInput<T>& input, const PlanOptions& options, int64_t n_warps) {
  if (input.rank > kMaxRank) {
    throw std::invalid_argument("glassconv: radial: expected at most " + std::to_string(kMaxRank) + " features on a GPU, got " +
                                std::to_string(input.rank));
  }
  if (input.n_nodes > 0x7fffffff) {
    throw std::invalid_argument("glassconv: x: expected fewer than 2^31 nodes on a GPU, got " + std::to_string(input.n_nodes));
  }
  Planner planner(n_warps, input.given_sh, input.dim_sh, input.rank, options);
  narrow(input.dim_in), narrow(input.dim_out), narrow(input.n_weights), narrow(input.dim_sh);
  return planner.run(input.paths, input.n_paths);
}

template ConvPlans make_plans<float>(const ConvInput<float>&, const PlanOptions&, int64_t);
template ConvPlans make_plans<double>(const ConvInput<double>&, const PlanOptions&, int64_t);

}  // namespace glassconv
