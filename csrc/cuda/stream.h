// The stream that torch launches on, asked of torch at run time. The binary is linked with no CUDA library of torch, so
// that it loads beside a torch for CPUs, too, and is compiled without torch's CUDA headers.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

// The dispatch key that the kernels are registered for.
#define FASTNEST_GPU CUDA

namespace fastnest {

// As torch/csrc/inductor/aoti_torch/c/shim.h declares it: 0 where it succeeds.
using GetCurrentStream = int32_t (*)(int32_t device, void** stream);

inline GetCurrentStream find_current_stream() {
  // There wherever a CUDA tensor is: asked for without loading it, and never closed.
  void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  STD_TORCH_CHECK(
      torch_cuda != nullptr,
      "fastnest: the CUDA kernels need a torch built for CUDA, and libtorch_cuda.so is not loaded; install one, "
      "or use fastnest.backend(\"reference\")");
  void* function = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
  STD_TORCH_CHECK(
      function != nullptr,
      "fastnest: libtorch_cuda.so has no aoti_torch_get_current_cuda_stream; the CUDA kernels need torch >= 2.10");
  return reinterpret_cast<GetCurrentStream>(function);
}

// The current stream of a device, as index; the device of the tensors that a kernel is launched on.
inline cudaStream_t current_stream(int32_t device) {
  static const GetCurrentStream get = find_current_stream();
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "fastnest: torch has no current stream for GPU ", device);
  return static_cast<cudaStream_t>(stream);
}

// Makes a device the current one, as long as it lives, and has its current stream.
class OnGpu {
 public:
  explicit OnGpu(int32_t device) : guard_(device), stream(current_stream(device)) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;

 public:
  cudaStream_t const stream;
};

}  // namespace fastnest
