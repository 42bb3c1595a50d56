#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "half.h"

namespace handlens {
namespace {

constexpr Source kSources[] = {
    {"Q8_0", Layout::q8, 32, 34},
    {"Q4_0", Layout::q4, 32, 18},
    {"Q4_K", Layout::q4_k, 256, 144},
    {"Q6_K", Layout::q6_k, 256, 210},
    {"F32", Layout::f32, 1, 4},
    {"F16", Layout::f16, 1, 2},
    {"BF16", Layout::bf16, 1, 2},
};

// The codes of one group of a row, one a byte.
void read_codes(Layout layout, const uint8_t* row, size_t g, uint8_t* codes) {
    if (layout == Layout::q8) {  // d, 32 signed bytes
        const uint8_t* values = row + g * 34 + 2;
        for (size_t i = 0; i < kGroup; i++) codes[i] = values[i] ^ 0x80;
    } else if (layout == Layout::q4) {  // d, 16 bytes of columns i (low) and i + 16 (high)
        const uint8_t* both = row + g * 18 + 2;
        for (size_t i = 0; i < 16; i++) {
            codes[i] = both[i] & 15;
            codes[i + 16] = both[i] >> 4;
        }
    } else if (layout == Layout::q6_k) {  // low halves, then two high bits each (see gguf/blocks.py), 16 factors, d
        const uint8_t* block = row + g / 8 * 210;
        const uint8_t* low = block + g % 8 / 4 * 64 + g % 2 * 32;
        const uint8_t* high = block + 128 + g % 8 / 4 * 32;
        const int low_shift = g % 4 / 2 * 4, high_shift = g % 4 * 2;
        for (size_t i = 0; i < kGroup; i++) codes[i] = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
    } else {  // d, dmin, 12 bytes of factors, then 32 bytes for every two groups
        const uint8_t* both = row + g / 8 * 144 + 16 + g % 8 / 2 * 32;
        const int shift = g % 2 * 4;
        for (size_t i = 0; i < kGroup; i++) codes[i] = both[i] >> shift & 15;
    }
}

// The 6-bit scale and minimum of group g of the 12 packed bytes of a Q4_K block (see gguf/blocks.py).
void read_factors(const uint8_t* packed, size_t g, uint8_t* scale, uint8_t* minimum) {
    if (g < 4) {
        *scale = packed[g] & 63;
        *minimum = packed[g + 4] & 63;
    } else {
        *scale = (packed[g + 4] & 15) | (packed[g - 4] >> 2 & 48);
        *minimum = packed[g + 4] >> 4 | (packed[g] >> 2 & 48);
    }
}

void write_codes(Layout layout, const uint8_t* codes, size_t interleave, size_t r, uint8_t* block) {
    for (size_t step = 0; step < 8; step++) {
        if (!nibbles(layout)) {
            std::memcpy(block + (step * interleave + r) * 4, codes + step * 4, 4);
        } else if (step < 4) {
            uint8_t* to = block + (step * interleave + r) * 4;
            for (size_t k = 0; k < 4; k++)
                to[k] = static_cast<uint8_t>(codes[step * 4 + k] | codes[step * 4 + k + 16] << 4);
        }
    }
}

void write_scales(Layout layout, const uint8_t* row, size_t groups, size_t interleave, size_t r, uint8_t* scales) {
    if (layout == Layout::q8 || layout == Layout::q4) {
        const size_t nbytes = layout == Layout::q8 ? 34 : 18;
        for (size_t g = 0; g < groups; g++) std::memcpy(scales + (g * interleave + r) * 2, row + g * nbytes, 2);
        return;
    }
    if (layout == Layout::q6_k) {
        for (size_t s = 0; s < groups / kGroupsPerSuperblock; s++, row += 210, scales += interleave * 18) {
            std::memcpy(scales + r * 2, row + 208, 2);
            for (size_t part = 0; part < 16; part++) scales[interleave * (2 + part) + r] = row[192 + part];
        }
        return;
    }
    for (size_t s = 0; s < groups / kGroupsPerSuperblock; s++, row += 144, scales += interleave * 20) {
        std::memcpy(scales + r * 2, row, 2);
        std::memcpy(scales + (interleave + r) * 2, row + 2, 2);
        for (size_t g = 0; g < kGroupsPerSuperblock; g++)
            read_factors(row + 4, g, scales + interleave * (4 + g) + r, scales + interleave * (12 + g) + r);
    }
}

float number_at(Layout layout, const uint8_t* row, size_t column) {
    if (layout == Layout::f16) return from_half(row + 2 * column);
    if (layout == Layout::bf16) return widened(BrainFloat{static_cast<uint16_t>(row[2 * column] | row[2 * column + 1] << 8)});
    float number;
    std::memcpy(&number, row + 4 * column, 4);
    return number;
}

// A row of numbers as int8 with one scale; a row with something that is no finite number gets a scale that is none.
void write_int8_row(const Source& source, const Weights& shape, const uint8_t* row, size_t r, uint8_t* codes,
                    uint8_t* scales) {
    std::vector<float> numbers(shape.groups() * kGroup);
    float largest = 0;
    bool finite = true;
    for (size_t c = 0; c < shape.columns; c++) {
        numbers[c] = number_at(source.layout, row, c);
        finite = finite && std::isfinite(numbers[c]);
        largest = std::max(largest, std::fabs(numbers[c]));
    }
    // Below this one over the scale would be infinite.
    const bool zero = !finite || largest < 1e-30f;
    const float scale = !finite ? __builtin_nanf("") : zero ? 0 : largest / 127;
    std::memcpy(scales + 4 * r, &scale, 4);
    for (size_t g = 0; g < shape.groups(); g++) {
        uint8_t of_group[kGroup];
        for (size_t i = 0; i < kGroup; i++) {
            const float value = zero ? 0 : std::nearbyint(numbers[g * kGroup + i] * (127 / largest));
            of_group[i] = static_cast<uint8_t>(static_cast<int>(value) + 128);
        }
        write_codes(Layout::q8_row, of_group, shape.interleave, r, codes + g * shape.code_bytes());
    }
}

}  // namespace

std::span<const Source> sources() { return kSources; }

const Source* find_source(std::string_view type) {
    for (const Source& source : kSources)
        if (source.type == type) return &source;
    return nullptr;
}

void pack_block(const Source& source, const Weights& shape, const uint8_t* data, size_t block, uint8_t* codes,
                uint8_t* scales) {
    const size_t groups = shape.groups();
    const size_t row_bytes = shape.columns / source.weights * source.nbytes;
    codes += block * shape.block_bytes();
    scales += block * shape.scale_bytes();
    // Rows that fill the last block up are zero in scale and code.
    std::memset(codes, 0, shape.block_bytes());
    std::memset(scales, 0, shape.scale_bytes());
    for (size_t r = 0; r < shape.interleave && block * shape.interleave + r < shape.rows; r++) {
        const uint8_t* row = data + (block * shape.interleave + r) * row_bytes;
        if (is_float(shape.layout)) {
            const size_t size = source.nbytes;
            for (size_t c = 0; c < shape.columns; c++)
                std::memcpy(codes + (c * shape.interleave + r) * size, row + c * size, size);
            continue;
        }
        if (shape.layout == Layout::q8_row) {
            write_int8_row(source, shape, row, r, codes, scales);
            continue;
        }
        write_scales(source.layout, row, groups, shape.interleave, r, scales);
        for (size_t g = 0; g < groups; g++) {
            uint8_t of_group[kGroup];
            read_codes(source.layout, row, g, of_group);
            write_codes(source.layout, of_group, shape.interleave, r, codes + g * shape.code_bytes());
        }
    }
}

}  // namespace handlens
