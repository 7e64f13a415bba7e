#define FASTRNN_TARGET baseline
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_WIDE_TYPES
#include "target.inl"
