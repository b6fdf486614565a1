// The threads of one block: fibers that run one at a time, in random order, each until it waits for others.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <string>

#include "fiber.h"

namespace emulated {

inline constexpr unsigned kWarp = 32, kMaxThreads = 1024;

// xorshift64*
class Random {
 public:
  void seed(uint64_t seed) { state_ = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du; }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t{next()} * n) >> 32); }

 private:
  uint32_t next() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
  }
  uint64_t state_ = 1;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  Wait wait;
  unsigned mask;    // the rest is of the collective it waits at
  unsigned source;  // lane to read
  uint64_t value;   // brought, then received
};

// Lanes that wait for the rest of their mask.
struct Rendezvous {
  Wait kind;
  unsigned mask, arrived;
};

struct Warp {
  unsigned n_pending = 0;
  std::array<Rendezvous, kWarp> pending;
};

class Block {
 public:
  // False when something was found wrong, which `error` then tells.
  bool run(unsigned n_threads, void (*body)(void*), void* arguments);
  void wait_for_block();
  uint64_t wait_for_lanes(Wait kind, unsigned mask, uint64_t value, unsigned source);
  unsigned lane() const { return static_cast<unsigned>(current_ - threads_.data()) % kWarp; }

  std::string where() const;  // "block (0, 0, 0): "

  Random random;
  std::string error;

 private:
  static void entry();
  // Queue those who waited, in random order: a warp's lanes; all threads, one warp after the other.
  void release_lanes(unsigned warp, unsigned mask);
  void release_block();
  Thread* take();  // the first of the queue
  void run_next();
  void complete(unsigned warp, const Rendezvous& rendezvous);
  [[noreturn]] void fail(const std::string& what);
  [[noreturn]] void fail_divergent();

  std::array<Thread, kMaxThreads> threads_;
  std::array<Warp, kMaxThreads / kWarp> warps_;
  std::array<uint16_t, kMaxThreads> queue_;  // threads that can run: a ring
  unsigned queue_first_ = 0, n_queued_ = 0;
  unsigned n_threads_ = 0, n_exited_ = 0, n_at_barrier_ = 0;
  Thread* current_ = nullptr;
  Fiber scheduler_;
  bool started_ = false;
  Stacks stacks_;
  void (*body_)(void*) = nullptr;
  void* arguments_ = nullptr;
};

extern Block block;

}  // namespace emulated
