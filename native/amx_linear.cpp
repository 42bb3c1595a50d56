// Linear layers whose weights and activations are rounded to bfloat16, on the tiles of AMX. Weights are bfloat16 already
// (layout bf16_tiles), or quantised: then numbers are made of a block's codes and scales in float32, a few groups at a time,
//     lowest = -(offset * scale) - 256 * scale    or    -minimum - 256 * scale      (one fma)
//     number = (256 + code) * scale + lowest                                        (one fma)
// and rounded: the bits of a code, shifted to where those of 256 end, are the float 256 + code. With x' for x rounded,
//     total = the products of x' and w', 32 columns after another, summed as the instruction does it (see
//             amx_attention.cpp)
// A row of the result depends on no other, and neither on how rows and blocks are shared out.
//
// Two tiles of tokens meet two of weights at a time: four multiplications for four loads of which at most every other may
// miss the first cache. So a few groups of two blocks of weights stay in it while all tokens pass by from the second one,
// fetched with a hint to leave the first one alone, and so do the weights' next groups, asked for in the meantime.
#include <immintrin.h>

#include <algorithm>
#include <memory>

#include "avx512.h"
#include "simd_avx512.h"
#include "kernels.h"
#include "steps.h"
#include "tiles.h"

namespace handlens {
namespace {

constexpr size_t kTile = kRows;                        // rows of a tile, and of a block of weights
constexpr size_t kTileNumbers = kTile * kGroup;        // a group's in a tile
constexpr size_t kTileTotals = kTile * kTile;              // of two tiles
constexpr size_t kMostTokens = 256, kMostBlocks = 48;  // whose totals stay in the second cache
constexpr size_t kMostGroups = 18;                     // of two blocks that stay in the first cache
constexpr size_t kFewPairs = 2;                        // of tiles of tokens whose columns all stay in the second

struct Workspace {
    // Of two tiles of tokens and two blocks side by side.
    alignas(64) float totals[kMostTokens / kTile / 2][kMostBlocks / 2][4 * kTileTotals];
    alignas(64) float row[kMostBlocks * kTile];
    // Of two blocks of quantised weights.
    alignas(64) uint16_t numbers[2][kMostGroups * kTileNumbers];
};

Workspace& workspace() {
    thread_local std::unique_ptr<Workspace> memory;
    if (!memory) memory = std::make_unique<Workspace>();
    return *memory;
}

// Tiles are multiplied in pairs.
size_t nbytes(size_t rows, size_t columns) { return up_to(rows, 2 * kTile) * groups_of(columns) * kGroup * 2; }

// `count` columns of a row of x, from one where a group begins, to its place in the tiles, of which each holds sixteen rows
// and a group. The last group is filled up with zeros.
void round_columns(const float* x, size_t count, uint16_t* to) {
    for (size_t column = 0; column < count; column += kGroup, to += kTileNumbers) {
        const auto part = [&](size_t first) {
            const size_t here = count > first ? std::min(kTile, count - first) : 0;
            return _mm512_maskz_loadu_ps(first_of(here), x + first);
        };
        _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(part(column + kTile), part(column)));
    }
}

uint16_t* place(uint16_t* tiles, size_t groups, size_t row, size_t group) {
    return tiles + (row / kTile * groups + group) * kTileNumbers + row % kTile * kGroup;
}

void round(const float* x, size_t columns, uint16_t* to, size_t row) {
    round_columns(x, columns, place(to, groups_of(columns), row, 0));
}

// The numbers of two columns in the sixteen rows of a block, side by side; each is rounded to the nearest, a half away from
// zero.
__m512i two_columns(__m512 first, __m512 second) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    const __m512i left = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(first), half), 16);
    const __m512i right = _mm512_add_epi32(_mm512_castps_si512(second), half);
    return _mm512_ternarylogic_epi32(right, upper, left, 0xea);  // (right & upper) | left
}

// The groups `some` of a block of quantised weights as a block of bf16_tiles has them.
template <Layout L>
void unpack(const Weights& w, size_t block, Range some, uint16_t* to) {
    constexpr Form kForm = form(L);
    constexpr size_t kBytes = kRows * row_code_bytes(L);
    const uint8_t* codes = w.codes + block * w.block_bytes() + some.first * kBytes;
    const uint8_t* scales = w.scales + block * w.scale_bytes();
    const __m512i levels = levels_of<L>(w);
    for (size_t g = some.first; g < some.last; g++, codes += kBytes, to += kTileNumbers) {
        __m512 scale[kForm.parts], lowest[kForm.parts];
        for (size_t part = 0; part < kForm.parts; part++) {
            const GroupScales of = scales_of<L>(scales, g, part);
            scale[part] = of.scale;
            const __m512 of_zero = has_minimum(L) ? _mm512_sub_ps(_mm512_setzero_ps(), of.minimum)
                                                  : _mm512_mul_ps(of.scale, _mm512_set1_ps(-kForm.offset));
            lowest[part] = _mm512_fnmadd_ps(of.scale, _mm512_set1_ps(256), of_zero);
        }
        for_steps<0, 1, 2, 3, 4, 5, 6, 7>([&](auto step) __attribute__((always_inline)) {
            constexpr size_t kPart = step * kForm.parts / 8;
            const __m512i four = codes_of<L, step>(codes, levels), byte = _mm512_set1_epi32(0xff << 15);
            const __m512i base = _mm512_castps_si512(_mm512_set1_ps(256));
            const auto number = [&](__m512i code) {
                // (code & byte) | base
                const __m512 above = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(code, byte, base, 0xea));
                return _mm512_fmadd_ps(above, scale[kPart], lowest[kPart]);
            };
            const __m512 first = number(_mm512_slli_epi32(four, 15)), second = number(_mm512_slli_epi32(four, 7));
            const __m512 third = number(_mm512_srli_epi32(four, 1)), fourth = number(_mm512_srli_epi32(four, 9));
            _mm512_store_si512(to + step * 4 * kTile, two_columns(first, second));
            _mm512_store_si512(to + (step * 4 + 2) * kTile, two_columns(third, fourth));
        });
    }
}

// Lines of memory on both sides, some of which are asked for at each step.
struct Ahead {
    const uint8_t* next[2];
    size_t each;

    __attribute__((always_inline)) void step() {
        for (size_t i = 0; i < each; i++)
            for (const uint8_t*& line : next) _mm_prefetch(line, _MM_HINT_T1), line += 64;
    }
};

// Adds the products of two tiles of tokens, `next` numbers apart, and two blocks to their totals.
void add(const uint16_t* tokens, size_t next, const uint16_t* left, const uint16_t* right, size_t groups, bool first,
         float* totals, Ahead ahead) {
    constexpr size_t kBytes = 2 * kTileNumbers;
    if (first) {
        zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    } else {
        load_tile<0, kBytes>(totals, 64), load_tile<1, kBytes>(totals + kTileTotals, 64);
        load_tile<2, kBytes>(totals + 2 * kTileTotals, 64), load_tile<3, kBytes>(totals + 3 * kTileTotals, 64);
    }
    for (size_t g = 0; g < groups; g++, tokens += kTileNumbers, left += kTileNumbers, right += kTileNumbers) {
        load_tile_once<4, kBytes>(tokens, 64), load_tile<6, kBytes>(left, 64);
        multiply_brain_floats<0, 4, 6>();
        load_tile<7, kBytes>(right, 64);
        multiply_brain_floats<1, 4, 7>();
        load_tile_once<5, kBytes>(tokens + next, 64);
        multiply_brain_floats<2, 5, 6>(), multiply_brain_floats<3, 5, 7>();
        ahead.step();
    }
    store_tile<0, kBytes>(totals, 64), store_tile<1, kBytes>(totals + kTileTotals, 64);
    store_tile<2, kBytes>(totals + 2 * kTileTotals, 64), store_tile<3, kBytes>(totals + 3 * kTileTotals, 64);
}

// The weights of a call: of one layer, two neighbouring blocks of which are multiplied at a time, or of two, one of each.
struct Columns {
    const Weights *left, *right;

    bool one() const { return left == right; }
    size_t step() const { return one() ? 2 : 1; }
    const Weights& weights(size_t side) const { return side ? *right : *left; }
    // The block of a side that is multiplied with block `block` of the left one. Where the number of blocks is odd, the last
    // one is multiplied twice.
    size_t block(size_t side, size_t block, size_t last) const { return std::min(block + (one() ? side : 0), last - 1); }
};

// The totals of at most kMostTokens rows and kMostBlocks blocks, those of both sides counted.
template <Layout L>
void add_up(const Columns& columns, const uint16_t* x, Range rows, Range blocks, Workspace& work) {
    const Tiles configured;
    const Weights& w = *columns.left;
    const size_t groups = w.groups(), next = groups * kTileNumbers, group_bytes = w.block_bytes() / groups;
    const size_t pairs = (rows.last - rows.first + 2 * kTile - 1) / (2 * kTile);
    const size_t pieces = (groups + kMostGroups - 1) / kMostGroups;
    const size_t steps = (blocks.last - blocks.first + columns.step() - 1) / columns.step();
    // Many tokens stay in the second cache for all blocks, a piece after another; few leave room for a block after another,
    // which is how they lie.
    const bool many = pairs > kFewPairs;
    struct Place {
        size_t piece, step;
    };
    const auto place_of = [&](size_t n) { return many ? Place{n / steps, n % steps} : Place{n % pieces, n / pieces}; };
    const auto block_of = [&](size_t side, const Place& at) {
        return columns.block(side, blocks.first + at.step * columns.step(), blocks.last);
    };
    const auto codes = [&](size_t side, const Place& at) {
        return columns.weights(side).codes + block_of(side, at) * w.block_bytes() + groups * at.piece / pieces * group_bytes;
    };
    for (size_t n = 0; n < pieces * steps; n++) {
        const Place at = place_of(n);
        const Range some{groups * at.piece / pieces, groups * (at.piece + 1) / pieces};
        const size_t count = some.last - some.first, lines = count * group_bytes / 64;
        const uint16_t* numbers[2];
        for (size_t side = 0; side < 2; side++) {
            numbers[side] = reinterpret_cast<const uint16_t*>(codes(side, at));
            if constexpr (L != Layout::bf16_tiles) {
                unpack<L>(columns.weights(side), block_of(side, at), some, work.numbers[side]);
                numbers[side] = work.numbers[side];
            }
        }
        const Place follows = place_of(std::min(n + 1, pieces * steps - 1));
        const size_t each = (lines + pairs * count - 1) / (pairs * count);
        for (size_t pair = 0; pair < pairs; pair++) {
            const size_t line = pair * count * each;
            const Ahead ahead{{codes(0, follows) + line * 64, codes(1, follows) + line * 64}, line < lines ? each : 0};
            add(x + (rows.first / kTile + 2 * pair) * next + some.first * kTileNumbers, next, numbers[0], numbers[1], count,
                at.piece == 0, work.totals[pair][at.step], ahead);
        }
    }
}

// Calls give(rows, blocks, work) for parts of all rows and blocks, with their totals.
template <class Give>
void multiply_some(const Columns& columns, const uint16_t* x, Range rows, Range blocks, const Give& give) {
    const size_t most = kMostBlocks / 2 * columns.step();
    for (size_t row = rows.first; row < rows.last; row += kMostTokens)
        for (size_t block = blocks.first; block < blocks.last; block += most) {
            const Range some{row, std::min(row + kMostTokens, rows.last)};
            const Range few{block, std::min(block + most, blocks.last)};
            Workspace& work = workspace();
            if (columns.left->layout == Layout::bf16_tiles)
                add_up<Layout::bf16_tiles>(columns, x, some, few, work);
            else
                for_layout(columns.left->layout, [&](auto layout) { add_up<layout>(columns, x, some, few, work); });
            give(some, few, work);
        }
}

// The totals of token `t` and pair `pair` of blocks on one side.
__m512 totals_of(const Workspace& work, size_t t, size_t pair, size_t side) {
    return _mm512_load_ps(work.totals[t / kTile / 2][pair] + (t / kTile % 2 * 2 + side) * kTileTotals + t % kTile * kTile);
}

// The results of one layer: its totals plus the bias. Calls give(row, columns, numbers) for each row.
template <class Give>
void multiply_layer(const Weights& w, const uint16_t* x, Range rows, Range blocks, const float* bias, const Give& give) {
    multiply_some({&w, &w}, x, rows, blocks, [&](Range some, Range few, Workspace& work) {
        const size_t first = few.first * kTile;
        for (size_t token = some.first; token < some.last; token++) {
            for (size_t b = 0; b < few.last - few.first; b++) {
                __m512 result = totals_of(work, token - some.first, b / 2, b % 2);
                const __mmask16 kept = first_of(std::min(kTile, w.rows - first - b * kTile));
                if (bias) result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(kept, bias + first + b * kTile));
                _mm512_store_ps(work.row + b * kTile, result);
            }
            give(token, Range{first, std::min(few.last * kTile, w.rows)}, work.row);
        }
    });
}

void multiply(const Weights& w, const uint16_t* x, Range rows, Range blocks, const Output& out) {
    multiply_layer(w, x, rows, blocks, out.bias, [&](size_t row, Range columns, const float* numbers) {
        const size_t at = row * w.rows + columns.first, count = columns.last - columns.first;
        for (size_t i = 0; i < count; i += kTile) {
            const __mmask16 kept = first_of(std::min(kTile, count - i));
            __m512 result = _mm512_load_ps(numbers + i);
            if (out.residual) result = _mm512_add_ps(_mm512_maskz_loadu_ps(kept, out.residual + at + i), result);
            _mm512_mask_storeu_ps(out.data + at + i, kept, result);
        }
    });
}

// A row of results after a step, rounded to its place among the next layer's input.
void hand_on(const Step& step, float* numbers, const float* second, Range columns, size_t row, size_t groups, uint16_t* to) {
    const size_t count = columns.last - columns.first;
    kFloatAvx512.prepare(step, numbers, second, count, numbers);
    round_columns(numbers, count, place(to, groups, row, columns.first / kGroup));
}

void multiply_between(const Weights& w, const uint16_t* x, Range rows, Range blocks, const float* bias, const Step& step,
                      uint16_t* to) {
    multiply_layer(w, x, rows, blocks, bias, [&](size_t row, Range columns, float* numbers) {
        hand_on(step, numbers, nullptr, columns, row, groups_of(w.rows), to);
    });
}

void multiply_gated(const Weights& gate, const Weights& up, const uint16_t* x, Range rows, Range blocks, uint16_t* to) {
    multiply_some({&gate, &up}, x, rows, blocks, [&](Range some, Range few, Workspace& work) {
        float *const gates = work.row, *const ups = work.row + kMostBlocks / 2 * kTile;
        for (size_t token = some.first; token < some.last; token++) {
            for (size_t b = 0; b < few.last - few.first; b++) {
                _mm512_store_ps(gates + b * kTile, totals_of(work, token - some.first, b, 0));
                _mm512_store_ps(ups + b * kTile, totals_of(work, token - some.first, b, 1));
            }
            hand_on({Step::swiglu}, gates, ups, {few.first * kTile, std::min(few.last * kTile, gate.rows)}, token,
                    groups_of(gate.rows), to);
        }
    });
}

constexpr Bf16Linear kLinear = {kMostTokens, kMostBlocks, nbytes, round, multiply, multiply_between, multiply_gated};

// Packed weights are those of AVX-512 VNNI, and so is all else that is multiplied with them.
void multiply_bytes(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    kAvx512Vnni.multiply(w, x, rows, blocks, out);
}

double tile_work(size_t rounds) {
    const Tiles configured;
    for (size_t i = 0; i < rounds; i++) {
        multiply_brain_floats<0, 4, 6>();
        multiply_brain_floats<1, 5, 7>();
        multiply_brain_floats<2, 4, 7>();
        multiply_brain_floats<3, 5, 6>();
    }
    return static_cast<double>(rounds) * 4 * 2 * 16 * 16 * 32;
}

double float_work(size_t rounds) { return kAvx512Vnni.float_work(rounds); }

}  // namespace

const Kernels kAmx = {"amx", kRows, 192, true, &kFloatAvx512, multiply_bytes, tile_work, float_work, &kLinear, &kAmxAttention};
}  // namespace handlens
