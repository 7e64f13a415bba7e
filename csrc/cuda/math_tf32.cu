#include "layer.cuh"

namespace fastrnn {
const CudaKernels* cuda_kernels_tf32() { return CudaTable<Tf32Math>::kCells; }
}  // namespace fastrnn
