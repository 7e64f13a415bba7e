#include "layer.cuh"

namespace fastrnn {
const CudaKernels* cuda_kernels_float16() { return CudaTable<HalfMath>::kCells; }
}  // namespace fastrnn
