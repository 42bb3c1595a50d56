// Activations to int8, with a scale for each group of 32 or for a run of them.
#pragma once

#include <cstring>

#include "kernels.h"
#include "lanes.h"

namespace handlens {
namespace {

// Below this a group counts as zero: 127 / largest would overflow.
constexpr float kTiny = 1e-30f;

// One run of `count` columns, in at most `Run` groups; what is behind the columns is zero.
template <size_t Run>
inline void quantize_run(const float* x, size_t count, const Activations& into, size_t at) {
    static_assert(kGroup == 2 * kLanes);
    const size_t vectors = (count + kGroup - 1) / kGroup * 2;
    Lanes lanes[2 * Run];
    int32_t bits = 0;
    for (size_t i = 0; i < vectors; i++) {
        const size_t first = i * kLanes;
        lanes[i] = first + kLanes <= count ? load(x + first) : first < count ? load(x + first, count - first) : spread(0);
    }
    for (size_t i = 0; i < vectors; i += 2) bits = std::max(bits, largest_bits(lanes[i], lanes[i + 1]));
    float largest;
    std::memcpy(&largest, &bits, 4);
    const bool finite = bits < 0x7f800000;
    const float inverse = finite && largest >= kTiny ? 127.0f / largest : 0.0f;
    int32_t sums[2] = {0, 0};
    for (size_t i = 0; i < vectors; i++)
        sums[i % 2] += store_rounded(into.values + at * kGroup + i * kLanes, finite ? lanes[i] * spread(inverse) : spread(0));
    // A poisoned run poisons every output of its row, as it does in float.
    const float scale = !finite ? __builtin_nanf("") : inverse != 0.0f ? largest / 127.0f : 0.0f;
    into.scales[at] = scale;
    into.offsets[at] = -8 * (sums[0] + sums[1]);
    into.half_offsets[2 * at] = -8 * sums[0];
    into.half_offsets[2 * at + 1] = -8 * sums[1];
    into.sums[at] = scale * static_cast<float>(sums[0] + sums[1]);
}

template <size_t Run>
inline void quantize_runs(const float* x, const Activations& into, size_t row) {
    for (size_t g = 0; g < into.groups; g += Run)
        quantize_run<Run>(x + g * kGroup, std::min(Run * kGroup, into.columns - g * kGroup), into, row * into.groups + g);
}

inline void quantize(const float* x, const Activations& into, size_t row) {
    if (into.run == 1)
        quantize_runs<1>(x, into, row);
    else
        quantize_runs<run_of(Layout::q8_row)>(x, into, row);
}

}  // namespace
}  // namespace handlens
