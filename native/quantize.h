// Activations to int8 in groups of 32. Each instruction set's file compiles this for itself (hence the unnamed
// namespace); it is written so that compilers vectorise it, and its steps round alike everywhere.
#pragma once

#include <cstring>

#include "kernels.h"

namespace handlens {
namespace {

// Below this a group counts as zero: 127 / largest would overflow.
constexpr float kTiny = 1e-30f;
// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even.
constexpr float kRounder = 12582912.0f;

inline void quantize_row(const float* x, const Activations& into, size_t row) {
    float filled[kGroup] = {};
    for (size_t g = 0; g < into.groups; g++, x += kGroup) {
        if (const size_t left = into.columns - g * kGroup; left < kGroup) {
            std::memcpy(filled, x, left * sizeof(float));
            x = filled;
        }
        int8_t* values = into.values + (row * into.groups + g) * kGroup;
        // The bits of a magnitude, compared as integers, order numbers < infinity < not a number: nothing gets lost.
        int32_t bits = 0;
        for (size_t i = 0; i < kGroup; i++) {
            int32_t magnitude;
            std::memcpy(&magnitude, x + i, 4);
            magnitude &= 0x7fffffff;
            bits = bits > magnitude ? bits : magnitude;
        }
        float largest;
        std::memcpy(&largest, &bits, 4);
        bool finite = bits < 0x7f800000;
        float inverse = finite && largest >= kTiny ? 127.0f / largest : 0.0f;
        int32_t half_sums[2] = {0, 0};
        if (finite) {
            for (size_t half = 0; half < 2; half++) {
                for (size_t i = half * kGroup / 2; i < (half + 1) * kGroup / 2; i++) {
                    int32_t value = static_cast<int32_t>((x[i] * inverse + kRounder) - kRounder);
                    values[i] = static_cast<int8_t>(value);
                    half_sums[half] += value;
                }
            }
        } else {
            std::memset(values, 0, kGroup);
        }
        // A poisoned group poisons every output of its row, as it does in float.
        float scale = !finite ? __builtin_nanf("") : inverse != 0.0f ? largest / 127.0f : 0.0f;
        const size_t at = row * into.groups + g;
        const int32_t sum = half_sums[0] + half_sums[1];
        into.scales[at] = scale;
        into.offsets[at] = -8 * sum;
        into.half_offsets[2 * at] = -8 * half_sums[0];
        into.half_offsets[2 * at + 1] = -8 * half_sums[1];
        into.sums[at] = scale * static_cast<float>(sum);
    }
}

}  // namespace
}  // namespace handlens
