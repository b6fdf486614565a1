// Where a CUDA operator runs: the device of its tensors and torch's current stream there. Both come from the part of torch that
// every build has, so this file compiles beside a torch without CUDA.
#pragma once

#include <ATen/DeviceAccelerator.h>
#include <c10/core/DeviceGuard.h>

namespace glassconv {

class OnDevice {
 public:
  explicit OnDevice(c10::Device device) : guard_(device) {
    // The CPU has no streams; the emulated backend, whose tensors live there, runs at once.
    if (!device.is_cpu()) stream_ = at::accelerator::getCurrentStream(device.index()).native_handle();
  }
  void* stream() const { return stream_; }  // a cudaStream_t

 private:
  c10::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace glassconv
