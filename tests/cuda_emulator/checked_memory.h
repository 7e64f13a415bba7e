// Included before everything else in a checked build: the compiler does not call back for these
// functions, so they do it themselves (races.cpp).
#pragma once

#include <stddef.h>

extern "C" {
void* memcpy(void*, const void*, size_t) noexcept __asm__("fastrnn_checked_memcpy");
void* memmove(void*, const void*, size_t) noexcept __asm__("fastrnn_checked_memmove");
void* memset(void*, int, size_t) noexcept __asm__("fastrnn_checked_memset");
}
