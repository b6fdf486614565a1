// The neighbor search, public face of the core. Definition: all ordered pairs (source j, receiver i, shift S) with
// |r_i - r_j + S @ cell| < cutoff, decided by is_edge() of lattice.h, except (i, i, 0); sorted by receiver, source, shift.
// With types the cutoff is that of the two particles' types.
#pragma once

#include <memory>

#include "platform.h"

namespace glassconv {

struct NeighborParams {
  const double* positions;  // (n_particles, 3)
  const double* cells;      // (n_systems, 3, 3)
  const bool* pbc;          // (n_systems, 3)
  const int64_t* batch;     // (n_particles), non-decreasing, below n_systems
  int64_t n_particles;
  int64_t n_systems;
  double cutoff;                    // the largest one
  const int32_t* types = nullptr;   // (n_particles), from 0, below n_types; null: one cutoff for all
  const double* cutoffs = nullptr;  // (n_types, n_types), symmetric, from 0 (never an edge) to `cutoff`
  int64_t n_types = 0;
};

// What the squared distance of an edge is below. The same in both directions, and never above that of the largest cutoff, whatever
// the table holds: kernels rely on it.
GLASS_HD inline double cutoff_sq_of(const NeighborParams& params, int64_t receiver, int64_t source) {
  if (params.types == nullptr) return params.cutoff * params.cutoff;
  const int64_t a = params.types[receiver], b = params.types[source];
  const double given = params.cutoffs[a < b ? a * params.n_types + b : b * params.n_types + a];
  const double cutoff = given > params.cutoff ? params.cutoff : (given < 0.0 ? 0.0 : given);
  return cutoff * cutoff;
}

struct NeighborOutputs {
  int64_t* source;    // (n_edges)
  int64_t* receiver;  // (n_edges)
  int32_t* shifts;    // (n_edges, 3)
  int64_t* row_ptr;   // (n_particles + 1)
  int64_t* reverse;   // (n_edges)
};

// One edge of each two opposites: from the lower to the higher index or, from a particle to itself, with a shift whose first number
// that is not zero is positive. The others stand for the opposites, which are grouped by source.
struct HalfOutputs {
  int64_t* source;  // (n_edges / 2), like the others but
  int64_t* receiver;
  int32_t* shifts;           // (n_edges / 2, 3)
  int64_t* row_ptr;          // (n_particles + 1)
  int64_t* transpose_ptr;    // (n_particles + 1), where the edges out of each source begin in
  int64_t* transpose_slots;  // (n_edges / 2)
};

// Two steps, because the number of edges is only known after the search: construct, allocate for n_edges(), write() or write_half()
// once. In between the edges take 12 to 16 bytes each. The arrays of the parameters must outlive the object.
// The result does not depend on the number of threads.
// Throws std::invalid_argument for values that have no neighbor list (the message names the argument), std::bad_alloc. Types are
// used unchecked: see check_types() in neighbor_refusals.h.
class NeighborSearchCpu {
 public:
  NeighborSearchCpu(const NeighborParams& params, const Executor& executor);
  ~NeighborSearchCpu();

  int64_t n_edges() const;
  void write(const NeighborOutputs& outputs);
  void write_half(const HalfOutputs& outputs);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A list that was made with a larger cutoff, or with larger ones for pairs of types.
struct NeighborCandidates {
  const int64_t* source;   // (n_edges)
  const int32_t* shifts;   // (n_edges, 3)
  const int64_t* row_ptr;  // (n_particles + 1)
  const int64_t* reverse;  // (n_edges)
  int64_t n_edges;
};

// The edges of such a list that the definition still gives, in two steps like the search: construct, allocate n_edges(), write().
// The periodicity of the parameters is not used. Throws as the search does, also for lists that are none; types are used unchecked.
class NeighborFilterCpu {
 public:
  NeighborFilterCpu(const NeighborParams& params, const NeighborCandidates& candidates, const Executor& executor);
  ~NeighborFilterCpu();

  int64_t n_edges() const;
  void write(const NeighborOutputs& outputs);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The same search on a GPU: pointers are the device's, `stream` is a cudaStream_t, and `workspace` has
// neighbors_cuda_workspace() bytes, aligned to 256.
// Throws std::invalid_argument as above, std::runtime_error for errors of the CUDA runtime.
int64_t neighbors_cuda_workspace(int64_t n_particles, int64_t n_systems);

// The two steps of above: write row_ptr and return the number of edges, in the one wait for the GPU; then, with the workspace as
// the first step left it, the edges.
int64_t count_neighbors_cuda(const NeighborParams& params, int64_t* row_ptr, void* workspace, void* stream);
void write_neighbors_cuda(const NeighborParams& params, const NeighborOutputs& outputs, int64_t n_edges, void* workspace,
                          void* stream);

// One step without a wait, for at most `capacity` edges. `n_found` gets the number of edges, and row_ptr is complete; when they are
// more than the capacity, only rows that end within it are written. Unwritten numbers, and `reverse` of an edge whose opposite
// is not written, are -1. For input that has no neighbor list, n_found is -1 - Refusal (neighbor_refusals.h), row_ptr zero.
// Where `needed` holds false, nothing is written.
struct CapacityOutputs {
  NeighborOutputs edges;  // of `capacity` edges
  int64_t capacity;
  int64_t* n_found;
  const bool* needed;  // or null: needed
};

void find_neighbors_cuda(const NeighborParams& params, const CapacityOutputs& outputs, void* workspace, void* stream);

}  // namespace glassconv
