// Activations to int8 in groups of 32.
#pragma once

#include <cstring>

#include "kernels.h"
#include "lanes.h"

namespace handlens {
namespace {

// Below this a group counts as zero: 127 / largest would overflow.
constexpr float kTiny = 1e-30f;

// One group of `count` columns; those behind them are zero.
inline void quantize_group(const float* x, size_t count, const Activations& into, size_t at) {
    static_assert(kGroup == 2 * kLanes);
    Lanes half[2] = {spread(0), spread(0)};
    for (size_t i = 0; i < 2 && i * kLanes < count; i++)
        half[i] = count == kGroup ? load(x + i * kLanes) : load(x + i * kLanes, std::min(kLanes, count - i * kLanes));
    const int32_t bits = largest_bits(half[0], half[1]);
    float largest;
    std::memcpy(&largest, &bits, 4);
    const bool finite = bits < 0x7f800000;
    const float inverse = finite && largest >= kTiny ? 127.0f / largest : 0.0f;
    int32_t sums[2];
    for (size_t i = 0; i < 2; i++)
        sums[i] = store_rounded(into.values + at * kGroup + i * kLanes, finite ? half[i] * spread(inverse) : spread(0));
    // A poisoned group poisons every output of its row, as it does in float.
    const float scale = !finite ? __builtin_nanf("") : inverse != 0.0f ? largest / 127.0f : 0.0f;
    into.scales[at] = scale;
    into.offsets[at] = -8 * (sums[0] + sums[1]);
    into.half_offsets[2 * at] = -8 * sums[0];
    into.half_offsets[2 * at + 1] = -8 * sums[1];
    into.sums[at] = scale * static_cast<float>(sums[0] + sums[1]);
}

inline void quantize(const float* x, const Activations& into, size_t row) {
    for (size_t g = 0; g < into.groups; g++)
        quantize_group(x + g * kGroup, std::min(kGroup, into.columns - g * kGroup), into, row * into.groups + g);
}

}  // namespace
}  // namespace handlens
