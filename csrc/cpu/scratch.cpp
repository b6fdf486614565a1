#include "scratch.h"

#include <cstdint>
#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace glassconv {
namespace {

constexpr size_t huge_page = size_t{2} << 20;
constexpr size_t header = 64;  // in front of every block, and of its alignment

// What large blocks are for, or can no longer be: wishes, which the system may not grant.
void want_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
}
bool offer_to_system([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_FREE)
  return madvise(memory, bytes, MADV_FREE) == 0;
#else
  return false;
#endif
}

// None where addresses are limited: what is kept would be missing elsewhere.
size_t max_kept_bytes() {
#if defined(__linux__)
  rlimit addresses;
  if (getrlimit(RLIMIT_AS, &addresses) != 0 || addresses.rlim_cur != RLIM_INFINITY) return 0;
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) return static_cast<size_t>(pages) / 8 * static_cast<size_t>(page);
#endif
  return 0;
}

struct Block {
  char* memory;
  size_t bytes;
};

// Large blocks that were given back, the last one first.
class KeptBlocks {
 public:
  // A block that is large enough, but not by much, or none.
  Block take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->bytes >= bytes && (best == blocks_.end() || block->bytes < best->bytes)) best = block;
    }
    if (best == blocks_.end() || best->bytes - bytes > bytes / 4 + huge_page) return {nullptr, 0};
    const Block taken = *best;
    blocks_.erase(best);
    kept_bytes_ -= taken.bytes;
    return taken;
  }

  void keep(const Block& block) noexcept {
    if (block.bytes > limit_ || !offer_to_system(block.memory, block.bytes)) return std::free(block.memory);
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      blocks_.push_front(block);
    } catch (const std::bad_alloc&) {
      return std::free(block.memory);
    }
    kept_bytes_ += block.bytes;
    shrink(limit_);
  }

  // Their pages are the system's, but not their addresses, which can be short as well.
  void give_up() {
    const std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

 private:
  void shrink(size_t limit) noexcept {
    while (kept_bytes_ > limit) {
      kept_bytes_ -= blocks_.back().bytes;
      std::free(blocks_.back().memory);
      blocks_.pop_back();
    }
  }

  std::mutex mutex_;
  std::list<Block> blocks_;
  size_t kept_bytes_ = 0;
  const size_t limit_ = max_kept_bytes();
};

// Never destroyed: tensors may give back their memory when everything else is gone.
KeptBlocks& kept_blocks() {
  static KeptBlocks* const blocks = new KeptBlocks;
  return *blocks;
}

Block new_block(size_t bytes) {
  const size_t alignment = bytes < min_large_block ? header : huge_page;
  const size_t size = (bytes + alignment - 1) / alignment * alignment;
  if (alignment == huge_page) {
    if (const Block kept = kept_blocks().take(size); kept.memory != nullptr) return kept;
  }
  char* memory = static_cast<char*>(std::aligned_alloc(alignment, size));
  if (memory == nullptr) {
    kept_blocks().give_up();
    memory = static_cast<char*>(std::aligned_alloc(alignment, size));
  }
  if (memory == nullptr) throw std::bad_alloc();
  if (alignment == huge_page) want_huge_pages(memory, size);
  return {memory, size};
}

}  // namespace

void* allocate_block(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  const Block block = new_block(bytes + header);
  *reinterpret_cast<size_t*>(block.memory) = block.bytes;
  return block.memory + header;
}

void free_block(void* block) {
  if (block == nullptr) return;
  char* const memory = static_cast<char*>(block) - header;
  const size_t bytes = *reinterpret_cast<size_t*>(memory);
  if (bytes < min_large_block) return std::free(memory);
  kept_blocks().keep({memory, bytes});
}

}  // namespace glassconv
