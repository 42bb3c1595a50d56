#include "kernels.h"

#include <algorithm>

namespace handlens {

size_t Attention::block() const {
    constexpr size_t kScores = 3 << 15, kFewest = 12, kMost = 96;
    return std::max<size_t>(1, std::clamp(kScores / key_count, kFewest, kMost) * kv_heads / heads);
}

size_t Attention::tasks() const { return (queries + block() - 1) / block() * kv_heads; }

size_t Attention::scratch() const {
    const size_t rows = block() * (heads / kv_heads), columns = key_count + 16, padded = width + 16;
    return rows * (width + 1 + columns) + key_count * padded + 32 * width;
}

}  // namespace handlens
