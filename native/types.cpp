// How each GGUF block type holds its numbers; the formats are those of gguf/blocks.py, which is plainer.
#include <algorithm>
#include <bit>
#include <cstring>

#include "half.h"
#include "pack.h"

namespace handlens {
namespace {

using Levels = std::array<uint8_t, 16>;

// Codes are unsigned.
consteval Levels levels(std::initializer_list<int> numbers) {
    Levels codes{};
    for (size_t i = 0; i < 16; i++) codes[i] = static_cast<uint8_t>(128 + (i < numbers.size() ? numbers.begin()[i] : 0));
    return codes;
}

// The upper half of a codebook whose signs are stored apart.
constexpr uint8_t kNegative = 8;

consteval Levels levels_with_signs(std::initializer_list<int> magnitudes) {
    Levels codes = levels(magnitudes);
    for (size_t i = 0; i < kNegative; i++) codes[i + kNegative] = static_cast<uint8_t>(256 - codes[i]);
    return codes;
}

constexpr Levels kIq4 = levels({-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113});
constexpr Levels kQ3 = levels({-4, -3, -2, -1, 0, 1, 2, 3});
constexpr Levels kIq3S = levels_with_signs({1, 3, 5, 7, 9, 11, 13, 15});
constexpr Levels kIq3Xxs = levels_with_signs({4, 12, 20, 28, 36, 44, 52, 62});
constexpr Levels kIq2S = levels_with_signs({8, 25, 43});

// Four bits of columns i (low) and i + 16 (high).
void read_four(const uint8_t* both, uint8_t* codes) {
    for (size_t i = 0; i < 16; i++) {
        codes[i] = both[i] & 15;
        codes[i + 16] = both[i] >> 4;
    }
}

template <size_t At>
void four_at(const uint8_t* block, size_t g, const uint8_t*, uint8_t* codes) {
    read_four(block + At + g * 16, codes);
}

// The fifth bits are those of a 32-bit word, the lowest that of column 0.
template <size_t High, size_t Low>
void five_at(const uint8_t* block, size_t, const uint8_t*, uint8_t* codes) {
    read_four(block + Low, codes);
    for (size_t i = 0; i < kGroup; i++)
        codes[i] = static_cast<uint8_t>(codes[i] | (block[High + i / 8] >> i % 8 & 1) << 4);
}

void q8_0(const uint8_t* block, size_t, const uint8_t*, uint8_t* codes) {
    for (size_t i = 0; i < kGroup; i++) codes[i] = block[2 + i] ^ 0x80;
}

void q4_k(const uint8_t* block, size_t g, const uint8_t*, uint8_t* codes) {
    for (size_t i = 0; i < kGroup; i++) codes[i] = block[16 + g / 2 * 32 + i] >> g % 2 * 4 & 15;
}

void q5_k(const uint8_t* block, size_t g, const uint8_t*, uint8_t* codes) {
    for (size_t i = 0; i < kGroup; i++)
        codes[i] = static_cast<uint8_t>((block[48 + g / 2 * 32 + i] >> g % 2 * 4 & 15) | (block[16 + i] >> g & 1) << 4);
}

void q6_k(const uint8_t* block, size_t g, const uint8_t*, uint8_t* codes) {
    const uint8_t* low = block + g / 4 * 64 + g % 2 * 32;
    const uint8_t* high = block + 128 + g / 4 * 32;
    for (size_t i = 0; i < kGroup; i++)
        codes[i] = static_cast<uint8_t>((low[i] >> g % 4 / 2 * 4 & 15) | (high[i] >> g % 4 * 2 & 3) << 4);
}

void q2_k(const uint8_t* block, size_t g, const uint8_t*, uint8_t* codes) {
    for (size_t i = 0; i < kGroup; i++) codes[i] = block[16 + g / 4 * 32 + i] >> g % 4 * 2 & 3;
}

void q3_k(const uint8_t* block, size_t g, const uint8_t*, uint8_t* codes) {
    for (size_t i = 0; i < kGroup; i++)
        codes[i] = static_cast<uint8_t>((block[32 + g / 4 * 32 + i] >> g % 4 * 2 & 3) | (block[i] >> g & 1) << 2);
}

// Places of magnitudes and their signs, a bit each.
void sign(const uint8_t* places, size_t count, uint8_t signs, uint8_t* codes) {
    for (size_t i = 0; i < count; i++) codes[i] = places[i] | (signs >> i & 1 ? kNegative : 0);
}

void iq2_s(const uint8_t* block, size_t g, const uint8_t* grid, uint8_t* codes) {
    for (size_t i = 0; i < 4; i++) {
        const size_t point = block[2 + g * 4 + i] | (block[66 + g] >> 2 * i & 3) << 8;
        sign(grid + point * 8, 8, block[34 + g * 4 + i], codes + i * 8);
    }
}

void iq3_s(const uint8_t* block, size_t g, const uint8_t* grid, uint8_t* codes) {
    for (size_t i = 0; i < 8; i++) {
        const size_t point = block[2 + g * 8 + i] | (block[66 + g] >> i & 1) << 8;
        sign(grid + point * 4, 4, static_cast<uint8_t>(block[74 + g * 4 + i / 2] >> i % 2 * 4), codes + i * 4);
    }
}

uint32_t iq3_xxs_word(const uint8_t* block, size_t g) {
    uint32_t word;
    std::memcpy(&word, block + 66 + g * 4, 4);
    return word;
}

// Seven signs are stored; the eighth makes the number of minus signs even.
void iq3_xxs(const uint8_t* block, size_t g, const uint8_t* grid, uint8_t* codes) {
    for (size_t i = 0; i < 8; i++) {
        const uint32_t seven = iq3_xxs_word(block, g) >> i / 2 * 7 & 127;
        const uint32_t signs = seven | (std::popcount(seven) & 1) << 7;
        sign(grid + block[2 + g * 8 + i] * 4, 4, static_cast<uint8_t>(signs >> i % 2 * 4), codes + i * 4);
    }
}

// Float16 numbers as they are.
void plain(const uint8_t* block, BlockScales& scales) { std::memcpy(scales.scale, block, 2); }

// A number that is added is a negative minimum.
void with_added(const uint8_t* block, BlockScales& scales) {
    std::memcpy(scales.scale, block, 2);
    std::memcpy(scales.minimum, block + 2, 2);
    scales.minimum[1] ^= 0x80;
}

// Eight 6-bit scales and minima in 12 bytes.
void with_minima(const uint8_t* block, BlockScales& scales) {
    std::memcpy(scales.scale, block, 2);
    std::memcpy(scales.minimum, block + 2, 2);
    const uint8_t* packed = block + 4;
    for (size_t g = 0; g < 4; g++) {
        scales.factors[g] = packed[g] & 63;
        scales.minima[g] = packed[g + 4] & 63;
        scales.factors[g + 4] = (packed[g + 8] & 15) | (packed[g] >> 2 & 48);
        scales.minima[g + 4] = packed[g + 8] >> 4 | (packed[g + 4] >> 2 & 48);
    }
}

void q2_k_scales(const uint8_t* block, BlockScales& scales) {
    std::memcpy(scales.scale, block + 80, 2);
    std::memcpy(scales.minimum, block + 82, 2);
    for (size_t i = 0; i < 16; i++) {
        scales.factors[i] = block[i] & 15;
        scales.minima[i] = block[i] >> 4;
    }
}

void q3_k_scales(const uint8_t* block, BlockScales& scales) {
    const uint8_t* packed = block + 96;
    scales.superscale = from_half(block + 108);
    for (size_t i = 0; i < 16; i++)
        scales.factors[i] = static_cast<uint8_t>(((packed[i % 8] >> i / 8 * 4 & 15) | (packed[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32);
}

void q6_k_scales(const uint8_t* block, BlockScales& scales) {
    scales.superscale = from_half(block + 208);
    std::memcpy(scales.factors, block + 192, 16);
}

void iq4_xs_scales(const uint8_t* block, BlockScales& scales) {
    scales.superscale = from_half(block);
    for (size_t g = 0; g < 8; g++)
        scales.factors[g] = static_cast<uint8_t>(((block[4 + g / 2] >> g % 2 * 4 & 15) | (block[2 + g / 4] >> g % 4 * 2 & 3) << 4) - 32);
}

void iq3_s_scales(const uint8_t* block, BlockScales& scales) {
    scales.superscale = from_half(block);
    for (size_t g = 0; g < 8; g++) scales.factors[g] = static_cast<uint8_t>(2 * (block[106 + g / 2] >> g % 2 * 4 & 15) + 1);
}

// These add a half to a 4-bit scale, which is a half of an odd number.
void iq3_xxs_scales(const uint8_t* block, BlockScales& scales) {
    scales.superscale = from_half(block) * 0.25f;
    for (size_t g = 0; g < 8; g++) scales.factors[g] = static_cast<uint8_t>(2 * (iq3_xxs_word(block, g) >> 28) + 1);
}

void iq2_s_scales(const uint8_t* block, BlockScales& scales) {
    scales.superscale = from_half(block) * 0.125f;
    for (size_t i = 0; i < 16; i++) scales.factors[i] = static_cast<uint8_t>(2 * (block[74 + i / 2] >> i % 2 * 4 & 15) + 1);
}

constexpr Source kSources[] = {
    {"Q8_0", Layout::q8, 32, 34, q8_0, plain},
    {"Q4_0", Layout::q4, 32, 18, four_at<2>, plain},
    {"Q4_1", Layout::q4_1, 32, 20, four_at<4>, with_added},
    {"Q5_0", Layout::q5, 32, 22, five_at<2, 6>, plain},
    {"Q5_1", Layout::q5_1, 32, 24, five_at<4, 8>, with_added},
    {"IQ4_NL", Layout::levels, 32, 18, four_at<2>, plain, &kIq4},
    {"Q2_K", Layout::q2_k, 256, 84, q2_k, q2_k_scales},
    {"Q3_K", Layout::levels_half, 256, 110, q3_k, q3_k_scales, &kQ3},
    {"Q4_K", Layout::q4_k, 256, 144, q4_k, with_minima},
    {"Q5_K", Layout::q5_k, 256, 176, q5_k, with_minima},
    {"Q6_K", Layout::q6_k, 256, 210, q6_k, q6_k_scales},
    {"IQ4_XS", Layout::levels_k, 256, 136, four_at<8>, iq4_xs_scales, &kIq4},
    {"IQ3_S", Layout::levels_k, 256, 110, iq3_s, iq3_s_scales, &kIq3S, 512, 4},
    {"IQ3_XXS", Layout::levels_k, 256, 98, iq3_xxs, iq3_xxs_scales, &kIq3Xxs, 256, 4},
    {"IQ2_S", Layout::levels_half, 256, 82, iq2_s, iq2_s_scales, &kIq2S, 1024, 8},
    {"F32", Layout::f32, 1, 4},
    {"F16", Layout::f16, 1, 2},
    {"BF16", Layout::bf16, 1, 2},
};

}  // namespace

std::span<const Source> sources() { return kSources; }

const Source* find_source(std::string_view type) {
    for (const Source& source : kSources)
        if (source.type == type) return &source;
    return nullptr;
}

std::vector<uint8_t> places_of(const Source& source, std::span<const uint8_t> grid) {
    std::vector<uint8_t> places(grid.size());
    for (size_t i = 0; i < grid.size(); i++) {
        const auto end = source.levels->begin() + kNegative;
        const auto found = std::find(source.levels->begin(), end, grid[i] + 128);
        if (found == end || grid[i] == 0) return {};
        places[i] = static_cast<uint8_t>(found - source.levels->begin());
    }
    return places;
}

}  // namespace handlens
