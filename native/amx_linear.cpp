// Linear layers whose weights and activations are rounded to bfloat16 (layout bf16_tiles), on the tiles of AMX. With x' for x
// rounded,
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

#include "kernels.h"
#include "tiles.h"

namespace handlens {
namespace {

constexpr size_t kTile = 16;                           // rows of a tile, and of a block of weights
constexpr size_t kTileNumbers = kTile * kGroup;        // a group's in a tile
constexpr size_t kTotals = kTile * kTile;              // of two tiles
constexpr size_t kMostTokens = 256, kMostBlocks = 24;  // whose totals stay in the second cache
constexpr size_t kMostGroups = 18;                     // of two blocks that stay in the first cache

constexpr size_t up_to(size_t count, size_t multiple) { return (count + multiple - 1) / multiple * multiple; }

struct Workspace {
    // Of two tiles of tokens and two blocks side by side.
    alignas(64) float totals[kMostTokens / kTile / 2][kMostBlocks / 2][4 * kTotals];
    alignas(64) float row[kMostBlocks * kTile];
};

Workspace& workspace() {
    thread_local std::unique_ptr<Workspace> memory;
    if (!memory) memory = std::make_unique<Workspace>();
    return *memory;
}

size_t groups_of(size_t columns) { return (columns + kGroup - 1) / kGroup; }

// Tiles are multiplied in pairs.
size_t nbytes(size_t rows, size_t columns) { return up_to(rows, 2 * kTile) * groups_of(columns) * kGroup * 2; }

// `count` columns of a row of x, from one where a group begins, to its place in the tiles, of which each holds sixteen rows
// and a group. The last group is filled up with zeros.
void round_columns(const float* x, size_t count, uint16_t* to) {
    for (size_t column = 0; column < count; column += kGroup, to += kTileNumbers) {
        const auto part = [&](size_t first) {
            const size_t here = count > first ? std::min(kTile, count - first) : 0;
            return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << here) - 1), x + first);
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

// Lines of memory, some of which are asked for at each step.
struct Ahead {
    const uint8_t* next;
    size_t each;

    __attribute__((always_inline)) void step() {
        for (size_t i = 0; i < each; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    }
};

// Adds the products of two tiles of tokens, `next` numbers apart, and two blocks to their totals.
void add(const uint16_t* tokens, size_t next, const uint16_t* left, const uint16_t* right, size_t groups, bool first,
         float* totals, Ahead ahead) {
    constexpr size_t kBytes = 2 * kTileNumbers;
    if (first) {
        zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    } else {
        load_tile<0, kBytes>(totals, 64), load_tile<1, kBytes>(totals + kTotals, 64);
        load_tile<2, kBytes>(totals + 2 * kTotals, 64), load_tile<3, kBytes>(totals + 3 * kTotals, 64);
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
    store_tile<0, kBytes>(totals, 64), store_tile<1, kBytes>(totals + kTotals, 64);
    store_tile<2, kBytes>(totals + 2 * kTotals, 64), store_tile<3, kBytes>(totals + 3 * kTotals, 64);
}

// The totals of at most kMostTokens rows and kMostBlocks blocks.
void add_up(const Weights& w, const uint16_t* x, Range rows, Range blocks, Workspace& work) {
    const Tiles configured(kTile, 64);
    const size_t groups = w.groups(), next = groups * kTileNumbers;
    const size_t pairs = (rows.last - rows.first + 2 * kTile - 1) / (2 * kTile);
    const size_t pieces = (groups + kMostGroups - 1) / kMostGroups;
    const auto* numbers = reinterpret_cast<const uint16_t*>(w.codes);
    const uint16_t* tokens = x + rows.first / kTile * next;
    for (size_t i = 0; i < pieces; i++) {
        const size_t first = groups * i / pieces, last = groups * (i + 1) / pieces;
        for (size_t block = blocks.first; block < blocks.last; block += 2) {
            // Where the number is odd, the last block is multiplied twice.
            const auto piece = [&](size_t of, size_t group) {
                return numbers + std::min(of, blocks.last - 1) * next + group * kTileNumbers;
            };
            const bool more = block + 2 < blocks.last;
            const size_t follows = more ? block + 2 : blocks.first, from = more ? first : last;
            // Every other pair of tiles asks for a part of the one next block, the rest for the other.
            const size_t share = (pairs + 1) / 2, each = (kTile + share - 1) / share;
            for (size_t pair = 0; pair < pairs; pair++) {
                const auto* line = reinterpret_cast<const uint8_t*>(piece(follows + pair % 2, from));
                add(tokens + 2 * pair * next + first * kTileNumbers, next, piece(block, first), piece(block + 1, first),
                    last - first, i == 0, work.totals[pair][(block - blocks.first) / 2],
                    {line + pair / 2 * each * (last - first) * 64, each});
            }
        }
    }
}

// Calls give(row, first, numbers) with the totals of each row, all blocks side by side, plus the bias.
template <class Give>
void multiply_some(const Weights& w, const uint16_t* x, Range rows, Range blocks, const float* bias, const Give& give) {
    for (size_t row = rows.first; row < rows.last; row += kMostTokens)
        for (size_t block = blocks.first; block < blocks.last; block += kMostBlocks) {
            const Range some{row, std::min(row + kMostTokens, rows.last)};
            const Range few{block, std::min(block + kMostBlocks, blocks.last)};
            Workspace& work = workspace();
            add_up(w, x, some, few, work);
            for (size_t token = some.first; token < some.last; token++) {
                const size_t t = token - some.first, first = few.first * kTile, end = std::min(few.last * kTile, w.rows);
                for (size_t b = 0; b < few.last - few.first; b++) {
                    const float* totals = work.totals[t / kTile / 2][b / 2] + (t / kTile % 2 * 2 + b % 2) * kTotals;
                    __m512 result = _mm512_load_ps(totals + t % kTile * kTile);
                    const size_t left = w.rows - first - b * kTile;
                    const auto kept = static_cast<__mmask16>(left < kTile ? (1u << left) - 1 : 0xffff);
                    if (bias) result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(kept, bias + first + b * kTile));
                    _mm512_store_ps(work.row + b * kTile, result);
                }
                give(token, Range{first, end}, work.row);
            }
        }
}

void multiply(const Weights& w, const uint16_t* x, Range rows, Range blocks, const Output& out) {
    multiply_some(w, x, rows, blocks, out.bias, [&](size_t row, Range columns, float* numbers) {
        const size_t at = row * w.rows + columns.first, count = columns.last - columns.first;
        for (size_t i = 0; i < count; i += kTile) {
            const auto kept = static_cast<__mmask16>(count - i < kTile ? (1u << (count - i)) - 1 : 0xffff);
            __m512 result = _mm512_load_ps(numbers + i);
            if (out.residual) result = _mm512_add_ps(_mm512_maskz_loadu_ps(kept, out.residual + at + i), result);
            _mm512_mask_storeu_ps(out.data + at + i, kept, result);
        }
    });
}

void multiply_between(const Weights& w, const uint16_t* x, Range rows, Range blocks, const float* bias, const Step& step,
                      uint16_t* to) {
    multiply_some(w, x, rows, blocks, bias, [&](size_t row, Range columns, float* numbers) {
        const size_t count = columns.last - columns.first;
        kFloatAvx512.prepare(step, numbers, nullptr, count, numbers);
        round_columns(numbers, count, place(to, groups_of(w.rows), row, columns.first / kGroup));
    });
}

}  // namespace

const Bf16Linear kAmxLinear = {kMostTokens, 48, nbytes, round, multiply, multiply_between};

}  // namespace handlens
