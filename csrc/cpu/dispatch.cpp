// The choice among the CPU targets. Compiled for the baseline: it runs on every processor.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace fastrnn {

// Defined by target.inl, for each target in its namespace.
namespace baseline {
extern const Kernels<float> f32;
extern const Kernels<double> f64;
}  // namespace baseline
namespace avx2 {
extern const Kernels<float> f32;
extern const Kernels<double> f64;
extern const Kernels<bfloat16> bf16;
extern const Kernels<float16> f16;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> f32;
extern const Kernels<double> f64;
}  // namespace avx512
namespace avx512bf16 {
extern const Kernels<bfloat16> bf16;
}  // namespace avx512bf16

namespace {

const Target kBaseline = {"baseline", &baseline::f32, &baseline::f64};
#if defined(FASTRNN_HAVE_AVX2)
const Target kAvx2 = {"avx2", &avx2::f32, &avx2::f64, &avx2::bf16, &avx2::f16};
#endif
// A type that is converted has kernels for AVX2 only: others would cost more compilation than they
// save time.
#if defined(FASTRNN_HAVE_AVX512)
const Target kAvx512 = {"avx512", &avx512::f32, &avx512::f64, &avx2::bf16, &avx2::f16};
#endif
#if defined(FASTRNN_HAVE_AVX512BF16)
const Target kAvx512Bf16 = {"avx512bf16", &avx512::f32, &avx512::f64, &avx512bf16::bf16,
                            &avx2::f16};
#endif

std::atomic<const Target*> active{nullptr};

}  // namespace

int usable_targets(const Target** targets) {
  int count = 0;
  targets[count++] = &kBaseline;
  // Asks the operating system too: a register it does not save is not there.
#if defined(FASTRNN_HAVE_AVX2)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c"))
    return count;
  targets[count++] = &kAvx2;
#endif
#if defined(FASTRNN_HAVE_AVX512)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return count;
  targets[count++] = &kAvx512;
#endif
#if defined(FASTRNN_HAVE_AVX512BF16)
  if (__builtin_cpu_supports("avx512bf16")) targets[count++] = &kAvx512Bf16;
#endif
  return count;
}

const Target& active_target() {
  const Target* target = active.load(std::memory_order_acquire);
  if (!target) {
    const Target* usable[kTargets];
    target = usable[usable_targets(usable) - 1];
    active.store(target, std::memory_order_release);
  }
  return *target;
}

const Target* select_target(const char* name) {
  const Target* usable[kTargets];
  const int count = usable_targets(usable);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(usable[i]->name, name) != 0) continue;
    active.store(usable[i], std::memory_order_release);
    return usable[i];
  }
  return nullptr;
}

}  // namespace fastrnn
