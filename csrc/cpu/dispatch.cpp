// The choice among the CPU targets. Compiled for the baseline: it runs on every processor.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace fastrnn {

int usable_targets(const Target** targets) {
  int count = 0;
  targets[count++] = &kBaseline;
#if defined(FASTRNN_HAVE_AVX2) || defined(FASTRNN_HAVE_AVX512)
  // Asks the operating system too: a register it does not save is not there.
  __builtin_cpu_init();
#endif
#if defined(FASTRNN_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) targets[count++] = &kAvx2;
#endif
#if defined(FASTRNN_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    targets[count++] = &kAvx512;
#endif
  return count;
}

namespace {
std::atomic<const Target*> active{nullptr};
}

const Target& active_target() {
  const Target* target = active.load(std::memory_order_acquire);
  if (!target) {
    const Target* usable[3];
    target = usable[usable_targets(usable) - 1];
    active.store(target, std::memory_order_release);
  }
  return *target;
}

const Target* select_target(const char* name) {
  const Target* usable[3];
  const int count = usable_targets(usable);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(usable[i]->name, name) != 0) continue;
    active.store(usable[i], std::memory_order_release);
    return usable[i];
  }
  return nullptr;
}

}  // namespace fastrnn
