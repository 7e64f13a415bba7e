// Functions that ctypes can call: exceptions become a text.
#pragma once

#include <exception>

#include "runtime.h"

// Null if body() returned, else what it threw; valid until the next call of the thread.
template <class Body>
const char* fastrnn_guarded(Body&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return fastrnn::emulator::keep(error.what());
  }
}
