#include "layer.cuh"

namespace fastrnn {
const CudaKernels* cuda_kernels_float32() { return CudaTable<ScalarMath<float>>::kCells; }
}  // namespace fastrnn
