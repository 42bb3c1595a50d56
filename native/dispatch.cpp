#include "dispatch.h"

#include <initializer_list>

#if defined(HANDLENS_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif
#ifdef HANDLENS_X86
#include <cpuid.h>
#endif
#ifdef HANDLENS_AMX
#include <sys/syscall.h>
#include <unistd.h>
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

#ifdef HANDLENS_AMX
// The system has to be asked before the first use of the tiles' registers, once a process: they are large, and it
// saves them for each thread. Threads and forked children inherit what it says.
bool may_use_tiles() {
    static const bool allowed = [] {
        constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return allowed;
}

std::vector<std::string> lacking_amx() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    const bool tiles = d >> 24 & 1, bf16 = d >> 22 & 1;
    const bool conversions = __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1;
    // Whether the system saves what AMX adds: bits 17 and 18 of the register that xgetbv reads, if there is one.
    unsigned saved = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && c >> 27 & 1) asm volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    const bool system = (saved >> 17 & 3) == 3;
    return lacking({{"amx-tile", tiles}, {"amx-bf16", bf16}, {"avx512_bf16", conversions},
                    {"the system's permission", !tiles || (system && may_use_tiles())}});
}
#endif

}  // namespace

std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> sets;
#ifdef HANDLENS_X86
    __builtin_cpu_init();
    const Feature avx2 = {"avx2", __builtin_cpu_supports("avx2") != 0}, fma = {"fma", __builtin_cpu_supports("fma") != 0},
                  f16c = {"f16c", __builtin_cpu_supports("f16c") != 0};
    const std::vector<std::string> avx512 = lacking({{"avx512f", __builtin_cpu_supports("avx512f") != 0},
                                                     {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
                                                     {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
                                                     {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
                                                     {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0},
                                                     avx2, fma, f16c});
#ifdef HANDLENS_AMX
    std::vector<std::string> amx = lacking_amx();
    amx.insert(amx.end(), avx512.begin(), avx512.end());
    sets.push_back({&kAmx, amx});
#endif
    sets.push_back({&kAvx512Vnni, avx512});
#ifdef HANDLENS_AVXVNNI
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
    sets.push_back({&kAvxVnni, lacking({{"avxvnni", vnni}, avx2, fma, f16c})});
#endif
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
