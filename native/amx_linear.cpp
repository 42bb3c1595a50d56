// Linear layers whose weights are int8 with a scale a row (layout q8_row) and whose activations are rounded to bfloat16:
// eight bits in both, without a scale for every run of columns whose products would have to be stored to get it. A code
// is a bfloat16 number exactly. With x' for x rounded,
//     total = the products of x' and the codes, 32 columns after another, summed as the instruction does it (see
//             amx_attention.cpp)
// and at the end total * weight_scale. A row of the result depends on no other.
#include <immintrin.h>

#include <algorithm>
#include <memory>

#include "avx512.h"
#include "kernels.h"
#include "results.h"
#include "tiles.h"

namespace handlens {
namespace {

constexpr size_t kTileNumbers = kTokens * kGroup;            // of activations or codes in a tile
constexpr size_t kMostTokens = 288, kMostBlocks = 8;         // that are multiplied at a time
constexpr size_t kMostGroups = 8;                           // so that the activations of two tiles stay in the first cache

struct Workspace {
    alignas(64) uint16_t codes[kMostBlocks + 1][kMostGroups * kTileNumbers];
    alignas(64) float totals[kMostTokens / kTokens + 1][kMostBlocks + 1][kTokens * kRows];
};

Workspace& workspace() {
    thread_local std::unique_ptr<Workspace> memory;
    if (!memory) memory = std::make_unique<Workspace>();
    return *memory;
}

size_t groups_of(size_t columns) { return (columns + kGroup - 1) / kGroup; }

size_t nbytes(size_t rows, size_t columns) {
    // Tiles are multiplied in pairs.
    return (rows + 2 * kTokens - 1) / (2 * kTokens) * 2 * groups_of(columns) * kTileNumbers * 2;
}

// One row of x to its place in the tiles, of which each holds sixteen rows and a group of columns.
void round(const float* x, size_t columns, uint16_t* to, size_t row) {
    to += row / kTokens * groups_of(columns) * kTileNumbers + row % kTokens * kGroup;
    for (size_t column = 0; column < columns; column += kGroup, to += kTileNumbers) {
        const size_t here = std::min(kGroup, columns - column);
        const auto part = [&](size_t first) {
            const size_t count = here > first ? std::min(kRows, here - first) : 0;
            return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), x + column + first);
        };
        _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(part(kRows), part(0)));
    }
}

// The codes of some groups of a block as bfloat16: row r of a tile holds columns 2 r and 2 r + 1 of all rows.
void unpack(const Weights& w, size_t block, Range some, uint16_t* to) {
    constexpr size_t kBytes = kRows * row_code_bytes(Layout::q8_row);
    const uint8_t* codes = w.codes + block * w.block_bytes() + some.first * kBytes;
    // A byte below the bits of 2^23 is 2^23 plus the byte.
    const __m512i byte = _mm512_set1_epi32(255), large = _mm512_set1_epi32(0x4b000000);
    const __m512 zero = _mm512_set1_ps(8388608.0f + form(Layout::q8_row).offset);
    for (size_t at = 0; at < (some.last - some.first) * kBytes; at += 64, to += 2 * kGroup) {
        const __m512i four = _mm512_load_si512(codes + at);
        const auto number = [&](__m512i shifted) {
            const __m512i bits = _mm512_ternarylogic_epi32(shifted, byte, large, 0xea);  // (shifted & byte) | large
            return (__m512i)_mm512_sub_ps((__m512)bits, zero);
        };
        const auto pair = [&](__m512i low, __m512i high) {
            return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high);
        };
        _mm512_store_si512(to, pair(number(four), number(_mm512_srli_epi32(four, 8))));
        _mm512_store_si512(to + kGroup, pair(number(_mm512_srli_epi32(four, 16)), number(_mm512_srli_epi32(four, 24))));
    }
}

using Totals = float[kTokens * kRows];

// Adds the products of two tiles of tokens, `next` numbers apart, and two blocks to their totals.
void add(const uint16_t* tokens, size_t next, const uint16_t* codes, size_t groups, bool first, Totals* upper, Totals* lower) {
    constexpr size_t kBytes = 2 * kTileNumbers, kNextCodes = kMostGroups * kTileNumbers;
    if (first) {
        zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    } else {
        load_tile<0, kBytes>(upper[0], 64), load_tile<1, kBytes>(upper[1], 64);
        load_tile<2, kBytes>(lower[0], 64), load_tile<3, kBytes>(lower[1], 64);
    }
    for (size_t g = 0; g < groups; g++, tokens += kTileNumbers, codes += kTileNumbers) {
        load_tile<4, kBytes>(tokens, 64), load_tile<6, kBytes>(codes, 64);
        multiply_brain_floats<0, 4, 6>();
        load_tile<7, kBytes>(codes + kNextCodes, 64);
        multiply_brain_floats<1, 4, 7>();
        load_tile<5, kBytes>(tokens + next, 64);
        multiply_brain_floats<2, 5, 6>(), multiply_brain_floats<3, 5, 7>();
    }
    store_tile<0, kBytes>(upper[0], 64), store_tile<1, kBytes>(upper[1], 64);
    store_tile<2, kBytes>(lower[0], 64), store_tile<3, kBytes>(lower[1], 64);
}

// At most kMostTokens rows and kMostBlocks blocks.
void multiply_some(const Weights& w, const uint16_t* x, Range rows, Range blocks, const Output& out) {
    Workspace& work = workspace();
    const Tiles configured(kTokens, 64);
    const size_t groups = w.groups(), next = groups * kTileNumbers, count = blocks.last - blocks.first;
    const size_t tiles = (rows.last - rows.first + kTokens - 1) / kTokens;
    const size_t pieces = (groups + kMostGroups - 1) / kMostGroups;
    for (size_t i = 0; i < pieces; i++) {
        const Range some{groups * i / pieces, groups * (i + 1) / pieces};
        for (size_t block = 0; block < count; block++) unpack(w, blocks.first + block, some, work.codes[block]);
        for (size_t tile = 0; tile < tiles; tile += 2) {
            const uint16_t* tokens = x + (rows.first / kTokens + tile) * next + some.first * kTileNumbers;
            for (size_t block = 0; block < count; block += 2)
                add(tokens, next, work.codes[block], some.last - some.first, i == 0, work.totals[tile] + block,
                    work.totals[tile + 1] + block);
        }
    }
    for (size_t tile = 0; tile < tiles; tile++) {
        const size_t token = rows.first + tile * kTokens;
        for (size_t t = 0; t < std::min(kTokens, rows.last - token); t++)
            give<Layout::q8_row>(w, work.totals[tile], blocks, token + t, t, out);
    }
}

void multiply(const Weights& w, const uint16_t* x, Range rows, Range blocks, const Output& out) {
    for (size_t row = rows.first; row < rows.last; row += kMostTokens)
        for (size_t block = blocks.first; block < blocks.last; block += kMostBlocks)
            multiply_some(w, x, {row, std::min(row + kMostTokens, rows.last)},
                          {block, std::min(block + kMostBlocks, blocks.last)}, out);
}

}  // namespace

const Bf16Linear kAmxLinear = {nbytes, round, multiply};

}  // namespace handlens
