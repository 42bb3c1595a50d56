// Memory of the kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

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

constexpr size_t kLargePage = size_t{2} << 20;

constexpr size_t alignment_of(size_t bytes) { return bytes >= kLargePage ? kLargePage : kAlignment; }

// Much of it is read from the first to the last byte again and again, and looking up its pages would take a third of the
// time: large parts get large pages, where the system has them. What does not fill the last one stays in small ones.
inline Aligned allocate(size_t bytes) {
    const size_t alignment = alignment_of(bytes);
    Aligned memory(new (std::align_val_t(alignment)) uint8_t[bytes], Free{alignment});
#ifdef MADV_HUGEPAGE
    if (alignment == kLargePage) madvise(memory.get(), bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
    return memory;
}

// Memory for results, used again and again: each layer's have the sizes of the last one's, and fresh pages take as long to
// get as a tenth of a prompt. What is handed in is kept up to 64 MiB, the newest of it. Nobody waits for it: in a process
// that was forked, a thread that is gone may hold the lock for ever.
class Recycler {
public:
    static Recycler& get() {
        static auto& recycler = *new Recycler;  // arrays may outlive everything static
        return recycler;
    }

    uint8_t* take(size_t bytes) {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (!lock) return allocate(bytes).release();
        const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Block& block) { return block.bytes == bytes; });
        if (found == kept_.end()) return allocate(bytes).release();
        uint8_t* const memory = found->memory.release();
        drop(found);
        return memory;
    }
    void hand_in(uint8_t* memory, size_t bytes) {
        constexpr size_t kMost = size_t{64} << 20;
        Aligned owned(memory, Free{alignment_of(bytes)});
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (!lock) return;
        kept_.push_back({bytes, std::move(owned)});
        bytes_ += bytes;
        while (bytes_ > kMost) drop(kept_.begin());
    }

private:
    struct Block {
        size_t bytes;
        Aligned memory;
    };

    void drop(std::vector<Block>::iterator block) {
        bytes_ -= block->bytes;
        kept_.erase(block);
    }

    std::mutex mutex_;
    std::vector<Block> kept_;
    size_t bytes_ = 0;
};

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
