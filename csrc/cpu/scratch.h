// Memory that is written before it is read. Large blocks lie on huge pages, and those given back are kept for the next ones: the
// system takes longer to provide the memory of a long edge list than the search takes to fill it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>

namespace glassconv {

// Blocks from here on are large. A huge page takes as long as some hundred of the ordinary ones.
constexpr size_t min_large_block = size_t{1} << 20;

// Memory for `bytes`, not initialized, aligned to 64; given back by free_block(), from any thread. Throws std::bad_alloc.
//
// Large blocks that are given back are kept, up to an eighth of the machine's memory, and told to the system as pages that it may
// take at any time (MADV_FREE): they count as memory of the process, but do not stand in the way of anyone who needs some.
void* allocate_block(size_t bytes);
void free_block(void* block);

// Hands out arrays of one block, not initialized.
class Workspace {
 public:
  Workspace() = default;
  // For arrays of `bytes` in all, at most `n_arrays` of them.
  Workspace(size_t bytes, size_t n_arrays) : memory_(static_cast<char*>(allocate_block(bytes + n_arrays * alignment))) {
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
    void operator()(char* memory) const { free_block(memory); }
  };

  static constexpr size_t alignment = 64;
  std::unique_ptr<char, Free> memory_;
  char* left_ = nullptr;
};

}  // namespace glassconv
