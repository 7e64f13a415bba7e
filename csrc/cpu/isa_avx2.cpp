#define FASTRNN_TARGET avx2
#define FASTRNN_VECTOR_BYTES 32
#define TARGET_TABLE kAvx2
#include "target.inl"
