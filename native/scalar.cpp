// Every processor: one row, one token at a time, in plain C++.
#include <algorithm>
#include <cstring>
#include <vector>

#include "half.h"
#include "kernels.h"

namespace handlens {
namespace {

// One group of one row: gives its codes, and the scale and minimum of each part.
void unpack(const Weights& w, size_t row, size_t g, uint8_t* codes, float* scale, float* minimum) {
    const Form f = form(w.layout);
    const uint8_t* packed = w.codes + (row * w.groups() + g) * row_code_bytes(w.layout);
    for (size_t i = 0; i < kGroup; i++) {
        const int four = packed[i % 16] >> i / 16 * 4 & 15;
        const uint8_t* upper = packed + 16 + i % 4;
        switch (f.codes) {
            case Codes::bytes: codes[i] = packed[i]; break;
            case Codes::four: codes[i] = static_cast<uint8_t>(four); break;
            case Codes::five: codes[i] = static_cast<uint8_t>(four | (*upper >> i / 4 & 1) << 4); break;
            case Codes::six: codes[i] = static_cast<uint8_t>(four | (upper[i / 16 * 4] >> i % 16 / 4 * 2 & 3) << 4); break;
            case Codes::levels: codes[i] = w.levels[four]; break;
        }
    }
    const uint8_t* run = w.scales + row * w.scale_bytes() +
                         (f.scales == Scales::row ? 0 : g / scale_groups(w.layout) * row_scale_bytes(w.layout));
    for (size_t part = 0; part < f.parts; part++) {
        const size_t factor = g % kGroupsPerSuperblock * f.parts + part;
        float number = 0;
        if (f.scales == Scales::factors || f.scales == Scales::row) std::memcpy(&number, run, 4);
        if (f.scales == Scales::minima) {
            scale[part] = from_half(run) * static_cast<float>(run[4 + factor]);
            minimum[part] = from_half(run + 2) * static_cast<float>(run[4 + 8 * f.parts + factor]);
        } else if (f.scales == Scales::factors) {
            scale[part] = number * static_cast<float>(static_cast<int8_t>(run[4 + factor]));
        } else if (f.scales == Scales::row) {
            scale[part] = number;
        } else {
            scale[part] = from_half(run);
            if (f.scales == Scales::pair) minimum[part] = from_half(run + 2);
        }
    }
}

void multiply(const Weights& w, const Activations& x, Range tokens, Range blocks, const Output& out) {
    const size_t run = run_of(w.layout);
    std::vector<float> totals(x.rows);
    std::vector<int32_t> dots(x.rows);  // of a run so far
    for (size_t row = blocks.first; row < blocks.last; row++) {
        std::fill(totals.begin(), totals.end(), 0.0f);
        float scale[2], minimum[2];
        for (size_t g = 0; g < x.groups; g++) {
            uint8_t codes[kGroup];
            unpack(w, row, g, codes, scale, minimum);
            for (size_t token = tokens.first; token < tokens.last; token++) {
                size_t at = token * x.groups + g;
                const int8_t* values = x.values + at * kGroup;
                float& total = totals[token];
                const Form f = form(w.layout);
                for (size_t part = 0, width = kGroup / f.parts; part < f.parts; part++) {
                    int32_t dot = g % run ? dots[token]
                                          : f.offset / 8 * (f.parts == 2 ? x.half_offsets[2 * at + part] : x.offsets[at]);
                    for (size_t i = part * width; i < (part + 1) * width; i++) dot += codes[i] * values[i];
                    if (w.layout == Layout::q8_row) {
                        dots[token] = dot;
                        if (g % run == run - 1 || g == x.groups - 1)
                            total = __builtin_fmaf(static_cast<float>(dot), x.scales[at - g % run], total);
                    } else {
                        total = __builtin_fmaf(static_cast<float>(dot) * x.scales[at], scale[part], total);
                    }
                    if (has_minimum(w.layout)) total = __builtin_fmaf(-x.sum(at, f.parts, part), minimum[part], total);
                }
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

const Kernels kScalar = {"scalar", 1, 192, false, &kFloatScalar, multiply, integer_work, float_work};

}  // namespace handlens
