#define FASTRNN_TARGET avx2
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_WIDE_TYPES
#define FASTRNN_BFLOAT16
#define FASTRNN_FLOAT16
#include "target.inl"
