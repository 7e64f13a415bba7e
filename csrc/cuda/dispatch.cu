#include "schedule.cuh"

namespace fastrnn {

const CudaKernels* cuda_kernels_float16();
const CudaKernels* cuda_kernels_bfloat16();
const CudaKernels* cuda_kernels_float32();
const CudaKernels* cuda_kernels_tf32();
const CudaKernels* cuda_kernels_float64();

const CudaKernels* cuda_kernels(CudaMath math) {
  switch (math) {
    case CudaMath::float16:
      return cuda_kernels_float16();
    case CudaMath::bfloat16:
      return cuda_kernels_bfloat16();
    case CudaMath::float32:
      return cuda_kernels_float32();
    case CudaMath::tf32:
      return cuda_kernels_tf32();
    case CudaMath::float64:
      return cuda_kernels_float64();
  }
  return nullptr;
}

int64_t cuda_dense_rows(const Sizes& sizes, const CudaCall& call, int64_t* index) {
  const char* const what = "layer_forward";
  const DeviceGuard guard(call.device, what);
  Arena arena((char*)call.workspace);
  const HostTimeline time(sizes, call, arena, what);
  if (arena.used() > call.workspace_bytes) return arena.used();
  const DenseRowsArgs args = {time.on_device(), index};
  launch(dense_rows_kernel(), over(sizes.steps * sizes.batch, call.stream), args, what);
  return arena.used();
}

int cuda_device_count() { return device_count(); }

std::string cuda_without_code(int device) {
  const char* const what = "layer_forward";
  const DeviceGuard guard(device, what);
  return without_code(upload_kernel(), what);
}

}  // namespace fastrnn
