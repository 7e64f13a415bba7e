// The table of CUDA kernels as the host sees it: nothing here needs a CUDA header.
#pragma once

#include <string>

#include "../core/arguments.h"
#include "plan.h"

namespace fastrnn {

enum class CudaMath : int { float16, bfloat16, float32, tf32, float64 };
constexpr int kCudaMaths = 5;

// Where a call runs, and how.
struct CudaCall {
  int device = 0;
  void* stream = nullptr;  // cudaStream_t
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  const void* timeline = nullptr;  // the workspace of cuda_dense_rows for the same lengths, or null
  PlanChoice choice;
  Plan* plan = nullptr;  // where to leave the plan of the pass, for those who want to know it
};

// Pointers are to memory of the device, but for lengths and batch_sizes. x and w_ih are not read:
// products over all rows are the caller's.
//
// Dense rows are the rows that exist, step by step: all, or with lengths those within them, of
// which the longest come first.
struct CudaForward : Forward<void> {
  const void* gates[2] = {};  // by direction: (dense rows, G*H) x W_ihᵀ without biases
};

struct CudaBackward : Backward<void> {
  // By direction. Written, for products over all rows:
  void* da[2] = {};      // (dense rows, S*H) gradients by slot; see column() in backward.cuh. Where
                         // rows are dense it may be what the reserve has of the direction
  int64_t da_width = 0;  // values from one row of da to the next
  void* h_prev[2] = {};  // (dense rows, R) the state that entered each step; null: not needed
  void* mid[2] = {};     // (dense rows, H) r h of gru_reset_before, o tanh(c) before a projection
  void* dh[2] = {};      // (dense rows, R) gradients of h, with a projection
};

// Both return the bytes of workspace they need, and do nothing else where they are given fewer.
// They raise std::runtime_error with the text of CUDA's error.
struct CudaKernels {
  int64_t (*forward)(const CudaForward&, const CudaCall&) = nullptr;
  int64_t (*backward)(const CudaBackward&, const CudaCall&) = nullptr;
};

// By CellKind.
const CudaKernels* cuda_kernels(CudaMath math);

// The caller's row of each dense row of data with lengths. As the functions above. The workspace
// then holds the lengths, in the form in which kernels read them.
int64_t cuda_dense_rows(const Sizes& sizes, const CudaCall& call, int64_t* index);

int cuda_device_count();

// Why a device cannot run the kernels; empty where they are compiled for it.
std::string cuda_without_code(int device);

}  // namespace fastrnn
