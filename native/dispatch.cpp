#include "dispatch.h"

#include <initializer_list>

#if defined(HANDLENS_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace handlens {
namespace {

struct Feature {
    const char* name;
    bool there;
};

std::vector<std::string> lacking(std::initializer_list<Feature> needed) {
    std::vector<std::string> names;
    for (const Feature& feature : needed)
        if (!feature.there) names.emplace_back(feature.name);
    return names;
}

}  // namespace

std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> sets;
#ifdef HANDLENS_X86
    __builtin_cpu_init();
    const Feature avx2 = {"avx2", __builtin_cpu_supports("avx2") != 0}, fma = {"fma", __builtin_cpu_supports("fma") != 0},
                  f16c = {"f16c", __builtin_cpu_supports("f16c") != 0};
    sets.push_back({&kAvx512Vnni, lacking({{"avx512f", __builtin_cpu_supports("avx512f") != 0},
                                           {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
                                           {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
                                           {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
                                           {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0},
                                           avx2, fma, f16c})});
    sets.push_back({&kAvx2, lacking({avx2, fma, f16c})});
#endif
#ifdef HANDLENS_ARM
    bool dotprod = false, i8mm = false;
#ifdef __linux__
    // HWCAP_ASIMDDP and HWCAP2_I8MM of the kernel's asm/hwcap.h, which older systems do not name.
    dotprod = getauxval(AT_HWCAP) >> 20 & 1;
    i8mm = getauxval(AT_HWCAP2) >> 13 & 1;
#endif
    sets.push_back({&kNeonI8mm, lacking({{"i8mm", i8mm}, {"dotprod", dotprod}})});
    sets.push_back({&kNeonDotprod, lacking({{"dotprod", dotprod}})});
    sets.push_back({&kNeon, {}});
#endif
    sets.push_back({&kScalar, {}});
    return sets;
}

const std::vector<const Kernels*>& usable_kernels() {
    static const std::vector<const Kernels*> usable = [] {
        std::vector<const Kernels*> found;
        for (const InstructionSet& set : instruction_sets())
            if (set.lacking.empty()) found.push_back(set.kernels);
        return found;
    }();
    return usable;
}

}  // namespace handlens
