#define FASTRNN_TARGET avx512
#define FASTRNN_VECTOR_BYTES 64
#define TARGET_TABLE kAvx512
#include "target.inl"
