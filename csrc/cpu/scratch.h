// Memory that is written before it is read, on huge pages where it is large: with pages of 4 KB the system takes longer to
// provide the memory of a long edge list than the search takes to fill it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace glassconv {

constexpr size_t huge_page = size_t{2} << 20;

// A wish, which the system may not grant.
inline void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
}

// Blocks below this are left on ordinary pages: a huge page takes as long as some hundred of those.
constexpr size_t min_huge_block = huge_page / 2;

// Memory for `bytes`, to be given back by std::free().
inline void* allocate_large(size_t bytes) {
  const size_t alignment = bytes < min_huge_block ? 64 : huge_page;
  const size_t size = (bytes + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, size);
  if (memory == nullptr && size > 0) throw std::bad_alloc();
  if (alignment == huge_page) advise_huge_pages(memory, size);
  return memory;
}

// Hands out arrays of one block, not initialized.
class Workspace {
 public:
  Workspace() = default;
  // For arrays of `bytes` in all, at most `n_arrays` of them.
  Workspace(size_t bytes, size_t n_arrays) : memory_(static_cast<char*>(allocate_large(bytes + n_arrays * alignment))) {
    left_ = memory_.get();
  }

  template <class T>
  std::span<T> take(size_t n) {
    static_assert(std::is_trivially_copyable_v<T>);
    T* const array = reinterpret_cast<T*>(left_);
    left_ += (n * sizeof(T) + alignment - 1) / alignment * alignment;
    return {array, n};
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };

  static constexpr size_t alignment = 64;
  std::unique_ptr<char, Free> memory_;
  char* left_ = nullptr;
};

}  // namespace glassconv
