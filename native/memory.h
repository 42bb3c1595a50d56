// Memory of the kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
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

// The whole pages of some memory that nobody reads any more.
inline void give_back([[maybe_unused]] uint8_t* memory, [[maybe_unused]] size_t bytes) {
#ifdef MADV_DONTNEED
    constexpr uintptr_t kPage = 4096;
    const uintptr_t from = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const uintptr_t to = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
#endif
}

// Memory for weights, one matrix behind the other in regions that they share: a region of each matrix's own would end in
// small pages, a tenth of some matrices. What is not used of a region is never touched and takes no memory; what is freed
// of it gives its pages back, where the system can, and the region goes with the last of its matrices.
inline std::shared_ptr<uint8_t[]> allocate_shared(size_t bytes) {
    constexpr size_t kRegion = size_t{256} << 20;
    static std::mutex mutex;
    static std::weak_ptr<uint8_t[]> newest;
    static size_t used = 0;
    const std::lock_guard lock(mutex);
    std::shared_ptr<uint8_t[]> region = newest.lock();
    if (!region || kRegion - used < bytes) {
        region = allocate(std::max(bytes, kRegion));
        newest = region;
        used = 0;
    }
    const std::shared_ptr<uint8_t[]> part(region.get() + used, [region, bytes](uint8_t* memory) { give_back(memory, bytes); });
    used = std::min(kRegion, used + (bytes + kAlignment - 1) / kAlignment * kAlignment);
    return part;
}

}  // namespace handlens
