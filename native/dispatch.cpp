#include "dispatch.h"

namespace handlens {

std::vector<const Kernels*> usable_kernels() {
    std::vector<const Kernels*> usable;
#ifdef HANDLENS_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx2 && avx512) usable.push_back(&kAvx512Vnni);
    if (avx2) usable.push_back(&kAvx2);
#endif
    usable.push_back(&kScalar);
    return usable;
}

}  // namespace handlens
