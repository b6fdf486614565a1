// Fibers: stacks of their own, and the switch from one to another, in a few instructions where it is written out below.
// (swapcontext, the portable way, makes a system call for each switch.)
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#define EMULATED_UCONTEXT
#endif
#ifdef EMULATED_UCONTEXT
#include <ucontext.h>
#endif

namespace emulated {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr size_t kStackBytes = 512 * 1024;  // frames with red zones are many times larger
#else
inline constexpr size_t kStackBytes = 64 * 1024;
#endif
inline constexpr size_t kPageBytes = 4096;

// A stretch of code that can be left in the middle: its stack, and where it was left.
struct Fiber {
#ifdef EMULATED_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  char* stack = nullptr;  // lowest address
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Stacks for n fibers, each above a page that must not be touched. They stay until the process ends: AddressSanitizer would not
// see that what is mapped there next has other variables.
class Stacks {
 public:
  void reserve(size_t n) {
    if (memory_ != nullptr) return;
    void* const memory =
        mmap(nullptr, n * kStride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (size_t i = 0; i < n; ++i) {
      if (mprotect(memory_ + i * kStride, kPageBytes, PROT_NONE) != 0) throw std::bad_alloc();
    }
  }
  void give(size_t i, Fiber& fiber) const {
    fiber.stack = memory_ + i * kStride + kPageBytes;
    // stacks at equal distances would compete for the same few lines of the cache
    fiber.stack_bytes = kStackBytes - i % 32 * 576;
  }

 private:
  static constexpr size_t kStride = kStackBytes + 2 * kPageBytes;
  char* memory_ = nullptr;
};

#ifdef EMULATED_UCONTEXT
inline void prepare(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
inline void switch_stacks(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#else
// Saves what a called function has to preserve on the stack, puts the stack pointer into *from, and returns on the stack `to`.
extern "C" void emulated_switch_stacks(void** from, void* to);

// Lays out a new stack as if `entry`'s caller had just left it.
inline void prepare(Fiber& fiber, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes);
#if defined(__x86_64__)
  constexpr int saved = 6, place = 6;  // the return address follows the six registers, another return address follows it
  top -= saved + 2;
#else
  constexpr int saved = 20, place = 11;  // x19 to x30, of which the last is the return address; d8 to d15
  top -= saved;
#endif
  for (int i = 0; i < saved; ++i) top[i] = nullptr;
  top[place] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = top;
}
inline void switch_stacks(Fiber& from, Fiber& to) { emulated_switch_stacks(&from.stack_pointer, to.stack_pointer); }
#endif

// Called first on a fiber's own stack. Where it came from is where `main` is, if that has not been asked before.
inline void arrive([[maybe_unused]] Fiber& fiber, [[maybe_unused]] Fiber* from) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &bottom, &size);
  if (from != nullptr) {
    from->stack = static_cast<char*>(const_cast<void*>(bottom));
    from->stack_bytes = size;
  }
#endif
}

// Leaves `from` for `to`; returns when somebody switches back. A fiber that `ends` is never returned to.
inline void switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool ends = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  switch_stacks(from, to);
  arrive(from, nullptr);
}

}  // namespace emulated
