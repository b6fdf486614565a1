// The host's side of the gradient kernels: working memory, launches, and the sums that are left when they are done.
#pragma once

#include "conv_gradients.cuh"

namespace glassconv {

template <class T>
class GradientPlan {
 public:
  GradientPlan(const ConvInput<T>& input, const ConvGradients<T>& gradients, const PlanOptions& options);

  size_t workspace_bytes() const;
  // Prepares the arrays that the kernels add to.
  void begin(void* workspace, cudaStream_t stream);
  // Calls launch(plan, targets, blocks) for every launch; a block has kWarpsPerBlock warps.
  template <class Launch>
  void for_each_launch(Launch&& launch) {
    GradientTargets<T> to = targets_;
    for (const ConvPlan& plan : plans_.plans) {
      dim3 blocks = blocks_for(n_warps_, kWarpsPerBlock);
      blocks.y = static_cast<unsigned>(plan.n_parts);
      launch(plan, to, blocks);
      to.first_part += plan.n_parts;
    }
  }
  // Gathers messages and adds up what warps and parts have summed.
  void finish(cudaStream_t stream);

 private:
  struct Pieces {
    size_t messages, angular, radial, mix, total;
  };
  Pieces pieces() const;

  const ConvInput<T>& in_;
  ConvGradients<T> out_;
  ConvPlans plans_;
  int64_t n_warps_ = 0;  // of the launches, a multiple of those of a block
  GradientTargets<T> targets_;
};

}  // namespace glassconv
