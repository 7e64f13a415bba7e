#define FASTRNN_TARGET baseline
#define FASTRNN_VECTOR_BYTES 16
#define TARGET_TABLE kBaseline
#include "target.inl"
