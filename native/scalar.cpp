// Every processor: one row, one token at a time, in plain C++.
#include <algorithm>
#include <cstring>
#include <vector>

#include "half.h"
#include "kernels.h"

namespace handlens {
namespace {

// One group of one row: gives its codes, the scale of each half, and its minimum.
void unpack(const Weights& w, size_t row, size_t g, uint8_t* codes, float* scale, float* minimum) {
    const uint8_t* packed = w.codes + (row * w.groups() + g) * w.code_bytes();
    if (!nibbles(w.layout)) {
        std::memcpy(codes, packed, kGroup);
    } else {
        for (size_t i = 0; i < 16; i++) {
            codes[i] = packed[i] & 15;
            codes[i + 16] = packed[i] >> 4;
        }
    }
    const uint8_t* scales = w.scales + row * w.scale_bytes();
    const size_t superblock = g / kGroupsPerSuperblock, in = g % kGroupsPerSuperblock;
    if (w.layout == Layout::q6_k) {
        scales += superblock * 18;
        for (size_t half = 0; half < 2; half++)
            scale[half] = from_half(scales) * static_cast<float>(static_cast<int8_t>(scales[2 + in * 2 + half]));
    } else if (w.layout == Layout::q4_k) {
        scales += superblock * 20;
        *scale = from_half(scales) * static_cast<float>(scales[4 + in]);
        *minimum = from_half(scales + 2) * static_cast<float>(scales[12 + in]);
    } else if (w.layout == Layout::q8_row) {
        std::memcpy(scale, scales, 4);
    } else {
        *scale = from_half(scales + 2 * g);
    }
}

void multiply(const Weights& w, const Activations& x, Range tokens, Range blocks, const Output& out) {
    std::vector<float> totals(x.rows);
    for (size_t row = blocks.first; row < blocks.last; row++) {
        std::fill(totals.begin(), totals.end(), 0.0f);
        float scale[2];
        for (size_t g = 0; g < x.groups; g++) {
            uint8_t codes[kGroup];
            float minimum = 0;
            unpack(w, row, g, codes, scale, &minimum);
            for (size_t token = tokens.first; token < tokens.last; token++) {
                size_t at = token * x.groups + g;
                const int8_t* values = x.values + at * kGroup;
                float& total = totals[token];
                const size_t halves = w.layout == Layout::q6_k ? 2 : 1, part = kGroup / halves;
                for (size_t half = 0; half < halves; half++) {
                    int32_t dot = 0;
                    if (w.layout == Layout::q8 || w.layout == Layout::q8_row) dot = 16 * x.offsets[at];
                    if (w.layout == Layout::q4) dot = x.offsets[at];
                    if (w.layout == Layout::q6_k) dot = 4 * x.half_offsets[2 * at + half];
                    for (size_t i = half * part; i < (half + 1) * part; i++) dot += codes[i] * values[i];
                    if (w.layout == Layout::q8_row)
                        total = __builtin_fmaf(static_cast<float>(dot), x.scales[at], total);
                    else
                        total = __builtin_fmaf(static_cast<float>(dot) * x.scales[at], scale[half], total);
                }
                if (w.layout == Layout::q4_k) total = __builtin_fmaf(-x.sums[at], minimum, total);
            }
        }
        for (size_t token = tokens.first; token < tokens.last; token++) {
            const size_t at = token * w.rows + row;
            float result = totals[token];
            if (w.layout == Layout::q8_row) result *= scale[0];
            if (out.bias) result += out.bias[row];
            if (out.residual) result = out.residual[at] + result;
            out.data[at] = result;
        }
    }
}

double integer_work(size_t rounds) {
    volatile uint8_t seed = 3;
    uint8_t codes[kGroup];
    int8_t values[kGroup];
    for (size_t i = 0; i < kGroup; i++) codes[i] = static_cast<uint8_t>(seed + i), values[i] = static_cast<int8_t>(seed);
    volatile int32_t kept;
    for (size_t round = 0; round < rounds; round++) {
        int32_t dot = 0;
        for (size_t i = 0; i < kGroup; i++) dot += codes[i] * values[i];
        codes[round % kGroup] ^= 1;  // or the loop would be folded
        kept = dot;
        (void)kept;
    }
    return static_cast<double>(rounds) * kGroup * 2;
}

double float_work(size_t rounds) {
    float total[8] = {};
    volatile float seed = 0.5f;
    const float a = seed, b = seed;
    for (size_t i = 0; i < rounds; i++)
        for (float& number : total) number = number * a + b;
    volatile float kept = total[0] + total[1] + total[2] + total[3] + total[4] + total[5] + total[6] + total[7];
    (void)kept;
    return static_cast<double>(rounds) * 16;
}

}  // namespace

const Kernels kScalar = {"scalar", 1, &kFloatScalar, multiply, integer_work, float_work};

}  // namespace handlens
