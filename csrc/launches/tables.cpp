// The tables of csrc/cuda for launches that are recorded: all arithmetics in one object, as there
// is no kernel to compile.
#include "../cuda/dispatch.cu"
#include "../cuda/math_bfloat16.cu"
#include "../cuda/math_float16.cu"
#include "../cuda/math_float32.cu"
#include "../cuda/math_float64.cu"
#include "../cuda/math_tf32.cu"
