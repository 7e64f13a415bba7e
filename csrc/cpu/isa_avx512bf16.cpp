#define FASTRNN_TARGET avx512bf16
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_BFLOAT16
#include "target.inl"
