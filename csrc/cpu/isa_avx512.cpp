#define FASTRNN_TARGET avx512
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_WIDE_TYPES
#include "target.inl"
