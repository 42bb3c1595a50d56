// Memory of the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace handlens {

constexpr size_t kAlignment = 64;

struct Free {
    size_t alignment = kAlignment;
    void operator()(uint8_t* memory) const { ::operator delete[](memory, std::align_val_t(alignment)); }
};
using Aligned = std::unique_ptr<uint8_t[], Free>;

// Much of it is read from the first to the last byte again and again, and looking up its pages would take a third of the
// time: large parts get large pages, where the system has them. What does not fill the last one stays in small ones.
inline Aligned allocate(size_t bytes) {
    constexpr size_t kLargePage = size_t{2} << 20;
    const size_t alignment = bytes >= kLargePage ? kLargePage : kAlignment;
    Aligned memory(new (std::align_val_t(alignment)) uint8_t[bytes], Free{alignment});
#ifdef MADV_HUGEPAGE
    if (alignment == kLargePage) madvise(memory.get(), bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
    return memory;
}

}  // namespace handlens
