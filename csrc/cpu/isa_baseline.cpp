#define FASTRNN_TARGET baseline
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_WIDE_TYPES
#define FASTRNN_BFLOAT16
#define FASTRNN_FLOAT16
#include "target.inl"
