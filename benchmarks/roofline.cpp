// What this machine does at best: rates of multiply-adds and of loads from the first-level cache, bandwidth of memory.
// Compiled, checked in the disassembly and run by roofline.py; prints a JSON object.
//
//   roofline N_THREADS SECONDS BYTES      seconds of one measurement, bytes of one array (far more than the caches hold)
//
// Each timed loop is one block of assembly in a function of its own, named loop_<what>_<isa>_<type>: the compiler can add
// no instruction to it, and roofline.py counts those that are there.

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds in which all threads do `work(thread)` once, begun together.
template <class Work>
double together(int n_threads, const Work& work) {
  std::atomic<int> n_ready{0};
  std::vector<double> begin(n_threads), end(n_threads);
  auto run = [&](int thread) {
    n_ready++;
    while (n_ready < n_threads) {
    }
    begin[thread] = now();
    work(thread);
    end[thread] = now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < n_threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (auto& other : others) other.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

// The highest rate of several measurements: amount per second.
template <class Work>
double best_rate(int n_threads, double amount, int n_rounds, const Work& work) {
  double best = 0;
  for (int round = 0; round < n_rounds; ++round) best = std::max(best, amount / together(n_threads, work));
  return best;
}

constexpr int kRounds = 9, kShortRounds = 60;  // where other work interrupts, short ones find a gap

}  // namespace

#if defined(__x86_64__)

#define REPEAT_12(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define REPEAT_24(F) REPEAT_12(F) F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#define CLOBBER_12 \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14", "xmm15"
#define CLOBBER_24 \
  CLOBBER_12, "xmm12", "xmm13", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm30", "xmm31"

// n times: as many instructions as there are accumulators, each an independent chain; operands at `data` (4096 bytes).
#define LOOP(NAME, TARGET, PROLOGUE, BODY, ...)                                                                            \
  extern "C" __attribute__((noinline, target(TARGET))) void NAME(long n, const void* data) {                               \
    asm volatile(PROLOGUE ".p2align 6\n1:\n" BODY "dec %0\njnz 1b\n" : "+r"(n) : "r"(data) : "cc", "memory", __VA_ARGS__); \
  }

#define LOAD_512(i) "vmovaps (%1), %%zmm" TEXT(i) "\n"
#define LOAD_256(i) "vmovaps (%1), %%ymm" TEXT(i) "\n"
#define LOAD_128(i) "movaps (%1), %%xmm" TEXT(i) "\n"
#define START_512 REPEAT_24(LOAD_512) LOAD_512(30) LOAD_512(31)
#define START_256 REPEAT_12(LOAD_256) LOAD_256(14) LOAD_256(15)
#define START_128 REPEAT_12(LOAD_128) LOAD_128(14) LOAD_128(15)

#define FMA_512_S(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" TEXT(i) "\n"
#define FMA_512_D(i) "vfmadd231pd %%zmm30, %%zmm31, %%zmm" TEXT(i) "\n"
#define FMA_256_S(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" TEXT(i) "\n"
#define FMA_256_D(i) "vfmadd231pd %%ymm14, %%ymm15, %%ymm" TEXT(i) "\n"
#define FMA_128_S(i) "mulps %%xmm14, %%xmm" TEXT(i) "\naddps %%xmm15, %%xmm" TEXT(i) "\n"
#define FMA_128_D(i) "mulpd %%xmm14, %%xmm" TEXT(i) "\naddpd %%xmm15, %%xmm" TEXT(i) "\n"
#define MEM_512_S(i) "vfmadd231ps 64*" TEXT(i) "(%1), %%zmm31, %%zmm" TEXT(i) "\n"
#define MEM_256_S(i) "vfmadd231ps 32*" TEXT(i) "(%1), %%ymm15, %%ymm" TEXT(i) "\n"
#define GET_512(i) "vmovaps 64*" TEXT(i) "(%1), %%zmm" TEXT(i) "\n"
#define GET_256(i) "vmovaps 32*" TEXT(i) "(%1), %%ymm" TEXT(i) "\n"
#define GET_128(i) "movaps 16*" TEXT(i) "(%1), %%xmm" TEXT(i) "\n"

// clang-format off
LOOP(loop_fma_avx512_float32, "avx512f", START_512, REPEAT_24(FMA_512_S), CLOBBER_24)
LOOP(loop_fma_avx512_float64, "avx512f", START_512, REPEAT_24(FMA_512_D), CLOBBER_24)
LOOP(loop_fma_avx2_float32, "avx2,fma", START_256, REPEAT_12(FMA_256_S), CLOBBER_12)
LOOP(loop_fma_avx2_float64, "avx2,fma", START_256, REPEAT_12(FMA_256_D), CLOBBER_12)
LOOP(loop_fma_plain_float32, "sse2", START_128, REPEAT_12(FMA_128_S), CLOBBER_12)
LOOP(loop_fma_plain_float64, "sse2", START_128, REPEAT_12(FMA_128_D), CLOBBER_12)
LOOP(loop_memfma_avx512_float32, "avx512f", START_512, REPEAT_24(MEM_512_S), CLOBBER_24)
LOOP(loop_memfma_avx2_float32, "avx2,fma", START_256, REPEAT_12(MEM_256_S), CLOBBER_12)
LOOP(loop_load_avx512_float32, "avx512f", START_512, REPEAT_24(GET_512), CLOBBER_24)
LOOP(loop_load_avx2_float32, "avx2,fma", START_256, REPEAT_12(GET_256), CLOBBER_12)
LOOP(loop_load_plain_float32, "sse2", START_128, REPEAT_12(GET_128), CLOBBER_12)
// clang-format on

namespace {

struct Loop {
  const char* what;
  const char* isa;
  const char* type;
  void (*run)(long, const void*);
  int n_operations;  // of one iteration
  int n_lanes;
  bool is_double;
};

const Loop kLoops[] = {
    {"fma", "avx512", "float32", loop_fma_avx512_float32, 24, 16, false},
    {"fma", "avx512", "float64", loop_fma_avx512_float64, 24, 8, true},
    {"fma", "avx2", "float32", loop_fma_avx2_float32, 12, 8, false},
    {"fma", "avx2", "float64", loop_fma_avx2_float64, 12, 4, true},
    {"fma", "plain", "float32", loop_fma_plain_float32, 12, 4, false},
    {"fma", "plain", "float64", loop_fma_plain_float64, 12, 2, true},
    {"memfma", "avx512", "float32", loop_memfma_avx512_float32, 24, 16, false},
    {"memfma", "avx2", "float32", loop_memfma_avx2_float32, 12, 8, false},
    {"load", "avx512", "float32", loop_load_avx512_float32, 24, 16, false},
    {"load", "avx2", "float32", loop_load_avx2_float32, 12, 8, false},
    {"load", "plain", "float32", loop_load_plain_float32, 12, 4, false},
};

bool runs(const std::string& isa) {
  if (isa == "avx512") return __builtin_cpu_supports("avx512f");
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return true;
}

// Iterations that take about so many seconds.
long iterations_for(const Loop& loop, const void* data, double seconds) {
  for (long n = 1000;; n *= 4) {
    const double start = now();
    loop.run(n, data);
    const double taken = now() - start;
    if (taken > 0.1 * seconds) return std::max(1000L, static_cast<long>(n * seconds / taken));
  }
}

void print_loops(int n_threads, double seconds) {
  alignas(4096) static unsigned char single[4096], twice[4096];
  for (int i = 0; i < 1024; ++i) reinterpret_cast<float*>(single)[i] = 0.5f;
  for (int i = 0; i < 512; ++i) reinterpret_cast<double*>(twice)[i] = 0.5;
  bool is_first = true;
  for (const Loop& loop : kLoops) {
    if (!runs(loop.isa)) continue;
    const void* data = loop.is_double ? twice : single;
    for (int threads = 1; threads <= n_threads; ++threads) {
      const long n = iterations_for(loop, data, seconds);
      const double operations = static_cast<double>(n) * loop.n_operations * threads;
      const double rate = best_rate(threads, operations, kShortRounds, [&](int) { loop.run(n, data); });
      std::printf(
          "%s\n    {\"what\": \"%s\", \"isa\": \"%s\", \"dtype\": \"%s\", \"threads\": %d, \"lanes\": %d, "
          "\"operations\": %d, \"per_s\": %.6g}",
          is_first ? "" : ",", loop.what, loop.isa, loop.type, threads, loop.n_lanes, loop.n_operations, rate);
      is_first = false;
    }
  }
}

__attribute__((target("avx2"))) void stream_copy(char* to, const char* from, std::size_t n_bytes) {
  for (std::size_t i = 0; i < n_bytes; i += 64) {
    const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i));
    const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 32), high);
  }
  _mm_sfence();
}

}  // namespace

#else

namespace {
bool runs(const std::string&) { return false; }
void print_loops(int, double) {}
void stream_copy(char* to, const char* from, std::size_t n_bytes) { std::memcpy(to, from, n_bytes); }
}  // namespace

#endif

namespace {

// Pages of 2 MB where the system gives them, touched.
char* allocate(std::size_t n_bytes) {
  constexpr std::size_t kPage = 2u << 20;
  void* memory = std::aligned_alloc(kPage, n_bytes);
  if (memory == nullptr) {
    std::fprintf(stderr, "no memory for %zu bytes\n", n_bytes);
    std::exit(1);
  }
  madvise(memory, n_bytes, MADV_HUGEPAGE);
  std::memset(memory, 1, n_bytes);
  return static_cast<char*>(memory);
}

std::atomic<std::uint64_t> result{0};

void read_all(const char* from, std::size_t n_bytes) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(from);
  std::uint64_t sums[32] = {};
  for (std::size_t i = 0; i < n_bytes / 8; i += 32) {
    for (int k = 0; k < 32; ++k) sums[k] += words[i + k];
  }
  for (const auto sum : sums) result += sum;
}

void print_bandwidths(int n_threads, std::size_t n_bytes) {
  char* from = allocate(n_bytes);
  char* to = allocate(n_bytes);
  bool is_first = true;
  for (int threads = 1; threads <= n_threads; ++threads) {
    const std::size_t share = n_bytes / threads / 4096 * 4096;
    const double total = static_cast<double>(share) * threads;
    auto print = [&](const char* what, double rate) {
      std::printf("%s\n    {\"what\": \"%s\", \"threads\": %d, \"bytes_per_s\": %.6g}", is_first ? "" : ",", what, threads,
                  rate);
      is_first = false;
    };
    print("read", best_rate(threads, total, kRounds, [&](int t) { read_all(from + t * share, share); }));
    double copy = best_rate(threads, 2 * total, kRounds, [&](int t) { std::memcpy(to + t * share, from + t * share, share); });
    if (runs("avx2"))
      copy = std::max(
          copy, best_rate(threads, 2 * total, kRounds, [&](int t) { stream_copy(to + t * share, from + t * share, share); }));
    print("copy", copy);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: roofline N_THREADS SECONDS BYTES\n");
    return 2;
  }
  const int n_threads = std::atoi(argv[1]);
  constexpr std::size_t kPage = 2u << 20;
  const std::size_t n_bytes = (std::strtoull(argv[3], nullptr, 10) + kPage - 1) / kPage * kPage;
  std::printf("{\"loops\": [");
  print_loops(n_threads, std::atof(argv[2]));
  std::printf("],\n\"bandwidths\": [");
  print_bandwidths(n_threads, n_bytes);
  std::printf("],\n\"array_bytes\": %zu}\n", n_bytes);
}
