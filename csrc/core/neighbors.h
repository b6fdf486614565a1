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

}  // namespace glassconv
