// AMX over AVX-512: a matrix instruction multiplies sixteen tokens with sixteen rows. Packed weights are those of
// AVX-512 VNNI, so few tokens at a time take its kernels.
//
// A tile is the products of one group, half or run (a unit), since each has scales of its own. Codes are unpacked to
// signed bytes once for many tokens: a block's codes are then an operand of the instruction as they lie. While it works on
// the next unit, the totals of the one before take their scales.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "avx512.h"
#include "kernels.h"
#include "steps.h"
#include "tiles.h"

namespace handlens {
namespace {

constexpr size_t kTokens = 16;      // of a tile
constexpr size_t kFewTokens = 14;    // up to here the other kernels are faster
constexpr size_t kMostTokens = 288, kMostBlocks = 8, kMostGroups = 40;  // that are unpacked at a time
constexpr size_t kGroupBytes = kRows * kGroup;
constexpr size_t kRing = 4;         // totals of so many groups are on their way

// What a thread works on: it stays in the second cache, the part that one block and one tile of tokens need in the first.
struct Workspace {
    struct Block {
        alignas(64) uint8_t codes[kMostGroups * kGroupBytes];
        alignas(64) float scales[kMostGroups * 2 * kRows], minima[kMostGroups * 2 * kRows];
    };
    struct Tokens {
        alignas(64) int8_t values[kMostGroups * kTokens * kGroup];
        alignas(64) float scales[kMostGroups * kTokens], sums[kMostGroups * 2 * kTokens];
    };
    Block blocks[kMostBlocks];
    Tokens tokens;
    alignas(64) int32_t ring[kRing][kTokens * kRows];
    alignas(64) float totals[kMostTokens / kTokens][kMostBlocks][kTokens * kRows];
};

Workspace& workspace() {
    thread_local std::unique_ptr<Workspace> memory;
    if (!memory) memory = std::make_unique<Workspace>();
    return *memory;
}

// The groups `some` of a block, as signed codes and float scales.
template <Layout L>
void unpack(const Weights& w, size_t block, Range some, Workspace::Block& to) {
    constexpr Form kForm = form(L);
    constexpr size_t kBytes = kRows * row_code_bytes(L);
    const uint8_t* codes = w.codes + block * w.block_bytes() + some.first * kBytes;
    const uint8_t* scales = w.scales + block * w.scale_bytes();
    const __m512i levels = levels_of<L>(w), offset = _mm512_set1_epi8(static_cast<char>(kForm.offset));
    uint8_t* out = to.codes;
    for (size_t g = some.first; g < some.last; g++, codes += kBytes, out += kGroupBytes) {
        for_steps<0, 1, 2, 3, 4, 5, 6, 7>([&](auto step) __attribute__((always_inline)) {
            _mm512_store_si512(out + step * 64, _mm512_sub_epi8(codes_of<L, step>(codes, levels), offset));
        });
        if constexpr (L == Layout::q8_row) continue;
        for (size_t part = 0; part < kForm.parts; part++) {
            const auto [scale, minimum] = scales_of<L>(scales, g, part);
            const size_t at = ((g - some.first) * kForm.parts + part) * kRows;
            _mm512_store_ps(to.scales + at, scale);
            if constexpr (has_minimum(L)) _mm512_store_ps(to.minima + at, minimum);
        }
    }
}

// The groups `some` of `count` tokens, side by side; of runs two groups of a token are neighbours, and the last run is
// filled up with zeros.
template <Layout L>
void gather(const Activations& x, size_t token, size_t count, Range some, Workspace::Tokens& to) {
    constexpr size_t kParts = form(L).parts, kRun = run_of(L);
    constexpr size_t kBytes = kRun * kGroup;  // of a token in a tile
    const size_t groups = some.last - some.first, bytes = groups * kGroup;
    for (size_t t = 0; t < count; t++) {
        const size_t first = (token + t) * x.groups + some.first;
        const int8_t* from = x.values + first * kGroup;
        int8_t* values = to.values + t * kBytes;
        size_t at = 0;
        for (; at + kBytes <= bytes; at += kBytes, values += kTokens * kBytes) std::memcpy(values, from + at, kBytes);
        if (at < bytes) std::memset(std::copy_n(from + at, bytes - at, values), 0, at + kBytes - bytes);
        for (size_t g = 0; g < groups; g += kRun) to.scales[g / kRun * kTokens + t] = x.scales[first + g];
        if constexpr (has_minimum(L))
            for (size_t g = 0; g < groups; g++)
                for (size_t part = 0; part < kParts; part++)
                    to.sums[(g * kParts + part) * kTokens + t] = x.sum(first + g, kParts, part);
    }
}

// One tile of tokens and one block; `i` counts units.
template <Layout L>
struct Pair {
    static constexpr size_t kParts = form(L).parts, kCodeBytes = kGroupBytes * run_of(L) / kParts;
    static constexpr size_t kTokenBytes = kGroup * run_of(L);  // of a token in a tile
    const Workspace::Block& block;
    const Workspace::Tokens& tokens;
    int32_t (*ring)[kTokens * kRows];

    // Sends the products on their way to a slot of the ring.
    template <int Slot>
    __attribute__((always_inline)) void begin(size_t i) const {
        constexpr int kOdd = Slot % 2;
        zero_tile<Slot>();
        const int8_t* values = tokens.values + i / kParts * kTokens * kTokenBytes + i % kParts * (kGroup / kParts);
        load_tile<4 + kOdd, kTokens * kTokenBytes>(values, kTokenBytes);
        load_tile<6 + kOdd, kCodeBytes>(block.codes + i * kCodeBytes, 64);
        multiply_bytes<Slot, 4 + kOdd, 6 + kOdd>();
    }
    template <int Slot>
    __attribute__((always_inline)) void keep() const {
        store_tile<Slot, sizeof ring[0]>(ring[Slot], 64);
    }

    // Adds what lies in a slot to the totals.
    template <int Slot>
    __attribute__((always_inline)) void finish(size_t i, __m512 (&total)[kTokens]) const {
        const int32_t* dots = ring[Slot];
        const float* token_scales = tokens.scales + i / kParts * kTokens;
        __m512 scale, minimum;
        if constexpr (L != Layout::q8_row) scale = _mm512_load_ps(block.scales + i * kRows);
        if constexpr (has_minimum(L)) minimum = _mm512_load_ps(block.minima + i * kRows);
#pragma GCC unroll 16  // or totals would lie in memory, for an index that is no constant
        for (size_t t = 0; t < kTokens; t++) {
            const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(dots + t * kRows));
            const __m512 token_scale = _mm512_set1_ps(token_scales[t]);
            if constexpr (L == Layout::q8_row)
                total[t] = _mm512_fmadd_ps(dot, token_scale, total[t]);
            else
                total[t] = _mm512_fmadd_ps(_mm512_mul_ps(dot, token_scale), scale, total[t]);
            if constexpr (has_minimum(L))
                total[t] = _mm512_fnmadd_ps(_mm512_set1_ps(tokens.sums[i * kTokens + t]), minimum, total[t]);
        }
    }

    // Adds the products of all `count` units to the totals.
    void add(size_t count, float* totals) const {
        __m512 total[kTokens];
#pragma GCC unroll 16
        for (size_t t = 0; t < kTokens; t++) total[t] = _mm512_load_ps(totals + t * kRows);
        // Four at a time: while the first ones' products are added up, the later ones' are on their way.
        size_t i = 0;
        for (; i + 4 <= count; i += 4) {
            begin<0>(i), begin<1>(i + 1);
            keep<0>(), begin<2>(i + 2);
            keep<1>(), begin<3>(i + 3);
            keep<2>(), keep<3>();
            finish<0>(i, total), finish<1>(i + 1, total), finish<2>(i + 2, total), finish<3>(i + 3, total);
        }
        for (; i < count; i++) begin<0>(i), keep<0>(), finish<0>(i, total);
#pragma GCC unroll 16
        for (size_t t = 0; t < kTokens; t++) _mm512_store_ps(totals + t * kRows, total[t]);
    }
};

// The part of a block's codes in the groups `some` that is `share` of `shares`, on its way to the second cache.
void fetch(const Weights& w, Range blocks, Range some, size_t share, size_t shares) {
    const size_t group = kRows * row_code_bytes(w.layout), count = (some.last - some.first) * group / 64;
    for (size_t block = blocks.first; block < blocks.last; block++) {
        const uint8_t* from = w.codes + block * w.block_bytes() + some.first * group;
        for (size_t line = count * share / shares; line < count * (share + 1) / shares; line++)
            _mm_prefetch(from + line * 64, _MM_HINT_T1);
    }
}

// The totals of a token and the blocks from `first` on to where they go: neighbours there, each token in another page.
template <Layout L>
void give(const Weights& w, const float (*totals)[kTokens * kRows], Range blocks, size_t token, size_t of_tile,
          const Output& out) {
    for (size_t block = blocks.first; block < blocks.last; block++) {
        const size_t row = block * kRows, left = w.rows - row, at = token * w.rows + row;
        const __mmask16 kept = left >= kRows ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
        __m512 result = _mm512_load_ps(totals[block - blocks.first] + of_tile * kRows);
        if constexpr (L == Layout::q8_row) {
            const __m512 scale = _mm512_load_ps(reinterpret_cast<const float*>(w.scales + block * w.scale_bytes()));
            result = _mm512_mul_ps(result, scale);
        }
        if (out.bias) result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(kept, out.bias + row));
        if (out.residual) result = _mm512_add_ps(_mm512_maskz_loadu_ps(kept, out.residual + at), result);
        _mm512_mask_storeu_ps(out.data + at, kept, result);
    }
}

template <Layout L>
void multiply_layout(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    Workspace& work = workspace();
    const size_t tiles = (rows.last - rows.first + kTokens - 1) / kTokens;
    constexpr size_t kRun = run_of(L);
    const size_t runs = (x.groups + kRun - 1) / kRun, pieces = (runs * kRun + kMostGroups - 1) / kMostGroups;
    const auto piece = [&](size_t i) {
        return Range{runs * i / pieces * kRun, std::min(runs * (i + 1) / pieces * kRun, x.groups)};
    };
    for (size_t i = 0; i < tiles; i++)
        std::fill_n(work.totals[i][0], (blocks.last - blocks.first) * kTokens * kRows, 0.0f);
    const Tiles configured(kTokens, kRun * kGroup / form(L).parts);
    for (size_t i = 0; i < pieces; i++) {
        const Range some = piece(i);
        const size_t units = (some.last - some.first + kRun - 1) / kRun * form(L).parts;
        for (size_t block = blocks.first; block < blocks.last; block++)
            unpack<L>(w, block, some, work.blocks[block - blocks.first]);
        for (size_t tile = 0; tile < tiles; tile++) {
            const size_t token = rows.first + tile * kTokens;
            gather<L>(x, token, std::min(kTokens, rows.last - token), some, work.tokens);
            if (i + 1 < pieces) fetch(w, blocks, piece(i + 1), tile, tiles);
            for (size_t block = 0; block < blocks.last - blocks.first; block++)
                Pair<L>{work.blocks[block], work.tokens, work.ring}.add(units, work.totals[tile][block]);
        }
    }
    for (size_t tile = 0; tile < tiles; tile++) {
        const size_t token = rows.first + tile * kTokens;
        for (size_t t = 0; t < std::min(kTokens, rows.last - token); t++)
            give<L>(w, work.totals[tile], blocks, token + t, t, out);
    }
}

void multiply(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    for (size_t row = rows.first; row < rows.last; row += kMostTokens) {
        const Range some{row, std::min(row + kMostTokens, rows.last)};
        if (some.last - some.first <= kFewTokens) {
            kAvx512Vnni.multiply(w, x, some, blocks, out);
            continue;
        }
        for (size_t block = blocks.first; block < blocks.last; block += kMostBlocks) {
            const Range few{block, std::min(block + kMostBlocks, blocks.last)};
            for_layout(w.layout, [&](auto layout) { multiply_layout<layout>(w, x, some, few, out); });
        }
    }
}

double integer_work(size_t rounds) {
    const Tiles configured(16, 64);
    for (size_t i = 0; i < rounds; i++) {
        multiply_bytes<0, 4, 6>();
        multiply_bytes<1, 5, 7>();
        multiply_bytes<2, 4, 7>();
        multiply_bytes<3, 5, 6>();
    }
    return static_cast<double>(rounds) * 4 * 2 * 16 * 16 * 64;
}

double float_work(size_t rounds) { return kAvx512Vnni.float_work(rounds); }

}  // namespace

const Kernels kAmx = {"amx", kRows, kMostTokens, &kFloatAvx512, multiply, integer_work, float_work};

}  // namespace handlens
