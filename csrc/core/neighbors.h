// The neighbor search, public face of the core. Definition: all ordered pairs (source j, receiver i, shift S) with
// |r_i - r_j + S @ cell| < cutoff, decided by is_edge() of lattice.h, except (i, i, 0); sorted by receiver, source, shift.
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
  double cutoff;
};

struct NeighborOutputs {
  int64_t* source;    // (n_edges)
  int64_t* receiver;  // (n_edges)
  int32_t* shifts;    // (n_edges, 3)
  int64_t* row_ptr;   // (n_particles + 1)
  int64_t* reverse;   // (n_edges)
};

// Two steps, because the number of edges is only known after the search: construct, allocate n_edges(), write() once. In between
// the edges take 8 bytes each. The arrays of the parameters must outlive the object.
// The result does not depend on the number of threads.
// Throws std::invalid_argument for values that have no neighbor list (the message names the argument), std::bad_alloc.
class NeighborSearchCpu {
 public:
  NeighborSearchCpu(const NeighborParams& params, const Executor& executor);
  ~NeighborSearchCpu();

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
void find_neighbors_cuda(const NeighborParams& params, const NeighborOutputs& outputs, int64_t capacity, int64_t* n_found,
                         void* workspace, void* stream);

}  // namespace glassconv
