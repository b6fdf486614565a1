#include "block.h"

#include <bit>
#include <map>
#include <utility>
#include <vector>

#if defined(__x86_64__) && !defined(EMULATED_UCONTEXT)
asm(R"(
  .pushsection .text
  .globl emulated_switch_stacks
  .hidden emulated_switch_stacks
  .type emulated_switch_stacks, @function
emulated_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulated_switch_stacks, . - emulated_switch_stacks
  .popsection
)");
#elif defined(__aarch64__) && !defined(EMULATED_UCONTEXT)
asm(R"(
  .pushsection .text
  .globl emulated_switch_stacks
  .hidden emulated_switch_stacks
  .type emulated_switch_stacks, @function
emulated_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size emulated_switch_stacks, . - emulated_switch_stacks
  .popsection
)");
#endif

namespace emulated {

Block block;

namespace {

const char* name(Wait wait) {
  switch (wait) {
    case Wait::nothing:
      return "nothing";
    case Wait::exited:
      return "exited";
    case Wait::syncthreads:
      return "__syncthreads";
    case Wait::syncwarp:
      return "__syncwarp";
    case Wait::shfl:
      return "__shfl_sync";
    case Wait::shfl_up:
      return "__shfl_up_sync";
    case Wait::shfl_down:
      return "__shfl_down_sync";
    case Wait::shfl_xor:
      return "__shfl_xor_sync";
    case Wait::ballot:
      return "__ballot_sync";
    case Wait::any:
      return "__any_sync";
    case Wait::all:
      return "__all_sync";
  }
  return "";
}

std::string hexadecimal(unsigned mask) {
  std::string digits(8, '0');
  for (int i = 7; i >= 0; --i, mask >>= 4) digits[i] = "0123456789abcdef"[mask & 15];
  return "0x" + digits;
}

// "0-3, 5": indices of the block's threads in the order of their warps.
std::string ranges(const std::vector<unsigned>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (i > 0 ? ", " : "") + std::to_string(numbers[i]) + (last > i ? "-" + std::to_string(numbers[last]) : "");
    i = last + 1;
  }
  return text;
}

}  // namespace

void wait_for_block() { block.wait_for_block(); }
uint64_t wait_for_lanes(Wait collective, unsigned mask, uint64_t value, unsigned source) {
  return block.wait_for_lanes(collective, mask, value, source);
}
unsigned lane() { return block.lane(); }

bool Block::run(unsigned n_threads, void (*body)(void*), void* arguments) {
  stacks_.reserve(kMaxThreads);
  n_threads_ = n_threads, body_ = body, arguments_ = arguments;
  n_exited_ = n_at_barrier_ = queue_first_ = n_queued_ = 0;
  error.clear();
  for (unsigned i = 0; i < n_threads; ++i) {
    Thread& thread = threads_[i];
    stacks_.give(i, thread.fiber);
#if defined(__SANITIZE_ADDRESS__)
    thread.fiber.fake_stack = nullptr;
    // the frames in which a thread exits are never left, and stay marked
    __asan_unpoison_memory_region(thread.fiber.stack + thread.fiber.stack_bytes - kPageBytes, kPageBytes);
#endif
    prepare(thread.fiber, &Block::entry);
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    thread.wait = Wait::nothing;
  }
  for (Warp& warp : warps_) warp.n_pending = 0;
  release_block();
  started_ = false;
  current_ = take();
  switch_to(scheduler_, current_->fiber);
#if defined(__SANITIZE_ADDRESS__)
  for (unsigned i = 0; i < n_threads && !error.empty(); ++i) {
    __asan_unpoison_memory_region(threads_[i].fiber.stack, threads_[i].fiber.stack_bytes);
  }
#endif
  return error.empty();
}

void Block::entry() {
  arrive(block.current_->fiber, block.started_ ? nullptr : &block.scheduler_);
  block.started_ = true;
  block.body_(block.arguments_);
  block.current_->wait = Wait::exited;
  if (++block.n_exited_ == block.n_threads_) {
    switch_to(block.current_->fiber, block.scheduler_, true);
  } else {
    block.run_next();
  }
  __builtin_unreachable();
}

void Block::release_lanes(unsigned warp, unsigned mask) {
  std::array<uint16_t, kWarp> order;
  unsigned count = 0;
  for (; mask != 0; mask &= mask - 1) {
    const unsigned thread = warp * kWarp + static_cast<unsigned>(std::countr_zero(mask));
    threads_[thread].wait = Wait::nothing;
    // Fisher and Yates, from the inside out
    const unsigned place = random.below(++count);
    order[count - 1] = order[place];
    order[place] = static_cast<uint16_t>(thread);
  }
  // Most often these lanes go on at once, so that a warp runs far ahead of the others; sometimes others are let by.
  const bool at_once = random.below(8) != 0;
  if (at_once) queue_first_ = (queue_first_ + kMaxThreads - count) % kMaxThreads;
  const unsigned to = at_once ? queue_first_ : queue_first_ + n_queued_;
  for (unsigned i = 0; i < count; ++i) queue_[(to + i) % kMaxThreads] = order[i];
  n_queued_ += count;
}

void Block::release_block() {
  const unsigned n_warps = (n_threads_ + kWarp - 1) / kWarp, last = n_threads_ % kWarp;
  std::array<unsigned, kMaxThreads / kWarp> order;
  for (unsigned i = 0; i < n_warps; ++i) {
    const unsigned place = random.below(i + 1);
    order[i] = order[place];
    order[place] = i;
  }
  for (unsigned i = 0; i < n_warps; ++i) {
    const bool partial = order[i] == n_warps - 1 && last != 0;
    release_lanes(order[i], partial ? (1u << last) - 1 : ~0u);
  }
}

Thread* Block::take() {
  Thread* const next = &threads_[queue_[queue_first_]];
  queue_first_ = (queue_first_ + 1) % kMaxThreads, --n_queued_;
  threadIdx = next->index;
  return next;
}

void Block::run_next() {
  if (n_queued_ == 0) fail_divergent();
  Thread* const last = current_;
  current_ = take();
  if (current_ != last) switch_to(last->fiber, current_->fiber, last->wait == Wait::exited);
}

void Block::wait_for_block() {
  current_->wait = Wait::syncthreads;
  if (++n_at_barrier_ == n_threads_) {
    n_at_barrier_ = 0;
    release_block();
  }
  run_next();
}

uint64_t Block::wait_for_lanes(Wait kind, unsigned mask, uint64_t value, unsigned source) {
  Thread& self = *current_;
  const unsigned own = lane(), number = static_cast<unsigned>(&self - threads_.data());
  self.wait = kind, self.mask = mask, self.value = value, self.source = source;
  const auto failed = [&](const std::string& what) {
    fail("thread " + std::to_string(number) + " at " + name(kind) + " with mask " + hexadecimal(mask) + ": " + what);
  };
  if ((mask >> own & 1) == 0) failed("the mask lacks its own lane");
  if (source >= kWarp || (kind >= Wait::shfl && kind <= Wait::shfl_xor && (mask >> source & 1) == 0)) {
    failed("reads lane " + std::to_string(source) + ", which the mask lacks");
  }
  Warp& warp = warps_[number / kWarp];
  unsigned i = 0;
  while (i < warp.n_pending && warp.pending[i].mask != mask) ++i;
  Rendezvous& r = warp.pending[i];
  if (i == warp.n_pending) {
    r = {kind, mask, 0};
    ++warp.n_pending;
  } else if (r.kind != kind) {
    failed(std::string("other lanes of the mask wait at ") + name(r.kind));
  }
  r.arrived |= 1u << own;
  if (r.arrived == mask) {
    const Rendezvous done = r;
    r = warp.pending[--warp.n_pending];
    complete(number / kWarp, done);
  }
  run_next();
  return self.value;
}

// Everybody has arrived: each lane is given what it asked for.
void Block::complete(unsigned warp, const Rendezvous& rendezvous) {
  const unsigned first = warp * kWarp, mask = rendezvous.mask;
  std::array<uint64_t, kWarp> received;
  if (rendezvous.kind >= Wait::shfl && rendezvous.kind <= Wait::shfl_xor) {
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int i = std::countr_zero(left);
      received[i] = threads_[first + threads_[first + i].source].value;
    }
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int i = std::countr_zero(left);
      threads_[first + i].value = received[i];
    }
  } else if (rendezvous.kind != Wait::syncwarp) {
    unsigned ballot = 0;
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int i = std::countr_zero(left);
      ballot |= static_cast<unsigned>(threads_[first + i].value) << i;
    }
    for (unsigned left = mask; left != 0; left &= left - 1) threads_[first + std::countr_zero(left)].value = ballot;
  }
  release_lanes(warp, mask);
}

std::string Block::where() const {
  return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "): ";
}

void Block::fail(const std::string& what) {
  error = where() + what;
  switch_to(current_->fiber, scheduler_);
  __builtin_unreachable();
}

void Block::fail_divergent() {
  std::map<std::pair<Wait, unsigned>, std::vector<unsigned>> groups;
  for (unsigned i = 0; i < n_threads_; ++i) {
    const Thread& thread = threads_[i];
    const bool masked = thread.wait > Wait::syncthreads;
    groups[{thread.wait, masked ? thread.mask : 0}].push_back(i);
  }
  std::string text;
  for (const auto& [key, numbers] : groups) {
    const auto& [wait, mask] = key;
    text += (text.empty() ? "threads " : "; threads ") + ranges(numbers);
    text += wait == Wait::exited ? " have exited" : std::string(" wait at ") + name(wait);
    if (wait > Wait::syncthreads) text += " with mask " + hexadecimal(mask);
  }
  fail("divergent barrier: " + text + " (of " + std::to_string(n_threads_) + ")");
}

}  // namespace emulated
