#include "layer.cuh"

namespace fastrnn {
const CudaKernels* cuda_kernels_bfloat16() { return CudaTable<BFloat16Math>::kCells; }
}  // namespace fastrnn
