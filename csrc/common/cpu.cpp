#include "common/cpu.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common/checks.h"
#include "common/target.h"

namespace specfast {

Capability best_capability() {
#if SPECFAST_X86_TARGETS
  static const Capability best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return Capability::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::avx2;
    return Capability::baseline;
  }();
  return best;
#else
  return Capability::baseline;
#endif
}

Capability capability_from_name(const std::string& name) {
  if (name.empty()) return best_capability();
  for (Capability capability : {Capability::baseline, Capability::avx2, Capability::avx512}) {
    if (name != capability_name(capability)) continue;
    check(capability <= best_capability(), "capability: ", name, " is not available here; the best is ",
          capability_name(best_capability()), ".");
    return capability;
  }
  check(false, "capability: expected baseline, avx2 or avx512; got ", name, ".");
  return Capability::baseline;
}

const char* capability_name(Capability capability) {
  switch (capability) {
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

int openmp_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

bool built_with_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace specfast
