#include "layer.cuh"

namespace fastrnn {
const CudaKernels* cuda_kernels_float64() { return CudaTable<ScalarMath<double>>::kCells; }
}  // namespace fastrnn
