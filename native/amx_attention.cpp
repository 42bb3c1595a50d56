// Softmax attention whose products are those of bfloat16 numbers, on the tiles of AMX; everything else is float32.
//
// Keys and values are rounded and packed once a call. A task then takes 32 queries of a head: their scores with all keys
// stand in the second cache; after the largest of each row is known, a few keys at a time become exponentials, which are
// rounded and multiplied with the values while they are in the first cache. With x' for x rounded to bfloat16,
//     score = the products of (q * log2(e) / sqrt(width))' and k', 32 columns of the head after another
//     power = 2^(score - the row's largest score), within 7.5e-5 of it
//     out = the products of power' and v', 32 keys after another, times 1 / the sum of powers in sixteen lanes
// where the products of 32 pairs are summed as the instruction does it: those of even and those of odd places from the
// first to the last, then one sum plus the other. A row of the result depends on no other row, so neither threads nor
// blocks change its bits. Where attention is causal a row's powers of the keys behind it are zero.
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "simd_avx512.h"
// The wrapper comes first: what follows is made of it.
#include "kernels.h"
#include "lanes.h"
#include "tiles.h"

namespace handlens {
namespace {

constexpr size_t kTile = 16;                             // rows of a tile, and its columns of float32
constexpr size_t kDepth = 2 * kTile;                     // bfloat16 numbers in a row of a tile: products of an instruction
constexpr size_t kTileNumbers = kTile * kDepth;          // bfloat16 numbers of a tile
constexpr size_t kQueries = 2 * kTile;                   // of a task
constexpr size_t kKeysToPack = 64;                       // of a task
constexpr size_t kKeysAtOnce = 256;                      // whose powers are in the first cache
constexpr size_t kAlignment = 64;

// How much there is of what, filled up to whole tiles.
struct Sizes {
    explicit Sizes(const Attention& a)
        : keys(up_to(a.key_count, kDepth)), depth(up_to(a.width, kDepth)), width(up_to(a.width, kTile)),
          // Rows that lie a power of two apart would share the same few places of a cache.
          row(keys + kTile) {}
    const size_t keys, depth, width, row;

    size_t head() const { return keys * (depth + width); }  // packed numbers of a head: its keys, then its values
};

inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Up to sixteen numbers, the rest zeros.
inline __m512 some(const float* from, size_t count) { return load(from, count).all; }
inline __m512 some(const Half* from, size_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_of(count), from));
}

// `count` numbers as 32, the rest zeros.
template <class Number>
__m512i rounded_row(const Number* from, size_t count) {
    const __m512 low = some(from, std::min(count, kLanes));
    return rounded(low, count > kLanes ? some(from + kLanes, count - kLanes) : _mm512_setzero_ps());
}

size_t tasks_to_pack(const Attention& a) { return a.kv_heads * ((a.key_count + kKeysToPack - 1) / kKeysToPack); }

// Sixteen keys: a tile for each 32 columns, of which row r holds columns 2 r and 2 r + 1 of all keys.
template <class Number>
void pack_keys(const Attention& a, const Number* from, size_t count, uint16_t* to) {
    alignas(kAlignment) float rows[kTile][kTile];
    for (size_t column = 0; column < a.width; column += kDepth, to += kTileNumbers) {
        for (size_t key = 0; key < kTile; key++) {
            const size_t here = std::min(kDepth, a.width - column);
            const __m512i pairs = key < count ? rounded_row(from + key * a.key_step + column, here) : _mm512_setzero_si512();
            _mm512_store_si512(rows[key], pairs);
        }
        transpose(rows[0], kTile, reinterpret_cast<float*>(to));
    }
}

// The values of 32 keys: a tile for each sixteen columns, of which row r holds keys 2 r and 2 r + 1.
template <class Number>
void pack_values(const Attention& a, const Number* from, size_t count, uint16_t* to) {
    alignas(kAlignment) uint16_t order[kDepth];
    for (size_t i = 0; i < kDepth; i++) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * kTile);
    const __m512i in_pairs = _mm512_load_si512(order);
    for (size_t column = 0; column < a.width; column += kTile) {
        const size_t here = std::min(kTile, a.width - column);
        for (size_t pair = 0; pair < kTile; pair++, to += kDepth) {
            const auto value = [&](size_t key) {
                return key < count ? some(from + key * a.value_step + column, here) : _mm512_setzero_ps();
            };
            _mm512_store_si512(to, _mm512_permutexvar_epi16(in_pairs, rounded(value(2 * pair), value(2 * pair + 1))));
        }
    }
}

template <class Number>
void pack_some(const Attention& a, size_t task, uint8_t* packed) {
    const Sizes sizes(a);
    const size_t head = task % a.kv_heads, first = task / a.kv_heads * kKeysToPack;
    const size_t last = std::min(first + kKeysToPack, sizes.keys);
    uint16_t* keys = reinterpret_cast<uint16_t*>(packed) + head * sizes.head();
    uint16_t* values = keys + sizes.keys * sizes.depth;
    const auto there = [&](size_t key, size_t most) { return std::min(most, a.key_count - std::min(key, a.key_count)); };
    const auto *of_keys = static_cast<const Number*>(a.keys), *of_values = static_cast<const Number*>(a.values);
    for (size_t key = first; key < last; key += kTile)
        pack_keys(a, of_keys + head * a.key_head + key * a.key_step, there(key, kTile), keys + key * sizes.depth);
    for (size_t key = first; key < last; key += kDepth)
        pack_values(a, of_values + head * a.value_head + key * a.value_step, there(key, kDepth), values + key * sizes.width);
}

void pack(const Attention& a, size_t task, uint8_t* packed) {
    a.half ? pack_some<Half>(a, task, packed) : pack_some<float>(a, task, packed);
}

// 2^x for x <= 0: at least 2^-126, and no number where x is none.
inline __m512 power_of_two_below_one(__m512 x) {
    const __m512 rounder = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    const __m512 shifted = _mm512_add_ps(x, rounder);
    const __m512 rest = _mm512_sub_ps(x, _mm512_sub_ps(shifted, rounder));
    __m512 series = _mm512_set1_ps(0.0551716626f);
    for (const float factor : {0.242611155f, 0.69326099f, 0.999928072f})
        series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(factor));
    return _mm512_mul_ps(series, power_of_two({shifted}).all);
}

// 32 queries of one head.
class Block {
public:
    Block(const Attention& attention, size_t task, const uint8_t* packed, uint8_t* scratch)
        : a(attention), sizes(a), head(task / blocks(a)), first(task % blocks(a) * kQueries),
          count(std::min(kQueries, a.queries - first)), seen(up_to(visible(count - 1), kDepth)),
          keys(reinterpret_cast<const uint16_t*>(packed) + head / (a.heads / a.kv_heads) * sizes.head()),
          values(keys + sizes.keys * sizes.depth) {
        totals = reinterpret_cast<float*>(scratch);
        scores = totals + kQueries * sizes.width;
        q = reinterpret_cast<uint16_t*>(scores + kQueries * sizes.row);
        powers = q + kQueries * sizes.depth;
    }

    void run() {
        const Tiles configured;
        round_queries();
        for (size_t key = 0; key < seen; key += kDepth) score_keys(key);
        for (size_t row = 0; row < count; row++) find_largest(row);
        for (size_t key = 0; key < seen; key += kKeysAtOnce) {
            const size_t here = std::min(kKeysAtOnce, seen - key);
            for (size_t row = 0; row < count; row++) make_powers(row, key, here);
            for (size_t column = 0; column < sizes.width; column += 2 * kTile)
                if (column + kTile < sizes.width)
                    read<2>(key, here, column);
                else
                    read<1>(key, here, column);
        }
        for (size_t row = 0; row < count; row++) give(row);
    }

    // Those of a head follow one another: its keys and values stay in the second cache.
    static size_t blocks(const Attention& a) { return (a.queries + kQueries - 1) / kQueries; }
    static size_t tasks(const Attention& a) { return a.heads * blocks(a); }
    static size_t scratch(const Attention& a) {
        const Sizes sizes(a);
        return kQueries * (4 * (sizes.width + sizes.row) + 2 * (sizes.depth + kKeysAtOnce));
    }

private:
    static constexpr size_t kTileBytes = 2 * kTileNumbers;
    // Bytes from the first to the last of a tile whose rows lie so many bytes apart.
    static constexpr size_t spanned(size_t stride) { return 15 * stride + 64; }

    // How many keys a row sees.
    size_t visible(size_t row) const { return a.visible(first + row); }

    // The tiles of queries one behind the other; rows behind the last query are zero.
    void round_queries() {
        const __m512 scale = _mm512_set1_ps(static_cast<float>(1.4426950408889634 / std::sqrt(double(a.width))));
        for (size_t row = 0; row < kQueries; row++) {
            const float* from = a.q + ((first + row) * a.heads + head) * a.width;
            for (size_t column = 0; column < sizes.depth; column += kDepth) {
                const auto part = [&](size_t at) {
                    if (row >= count || at >= a.width) return _mm512_setzero_ps();
                    return _mm512_mul_ps(load(from + at, std::min(kLanes, a.width - at)).all, scale);
                };
                uint16_t* to = q + row / kTile * kTile * sizes.depth + column * kTile + row % kTile * kDepth;
                _mm512_store_si512(to, rounded(part(column), part(column + kLanes)));
            }
        }
    }

    // The scores of all queries with 32 keys.
    void score_keys(size_t key) {
        zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
        const uint16_t *low = q, *high = q + kTile * sizes.depth;
        const uint16_t *left = keys + key * sizes.depth, *right = left + kTile * sizes.depth;
        for (size_t column = 0; column < sizes.depth; column += kDepth) {
            const size_t at = column * kTile;
            load_tile<4, kTileBytes>(low + at, 64), load_tile<6, kTileBytes>(left + at, 64);
            multiply_brain_floats<0, 4, 6>();
            load_tile<7, kTileBytes>(right + at, 64);
            multiply_brain_floats<1, 4, 7>();
            load_tile<5, kTileBytes>(high + at, 64);
            multiply_brain_floats<2, 5, 6>(), multiply_brain_floats<3, 5, 7>();
        }
        const size_t bytes = sizes.row * 4;
        float *upper = scores + key, *lower = upper + kTile * sizes.row;
        keep<0>(upper, bytes), keep<1>(upper + kTile, bytes), keep<2>(lower, bytes), keep<3>(lower + kTile, bytes);
    }

    // Rows of a tile to where they lie `bytes` apart.
    template <int Tile>
    static void keep(float* to, size_t bytes) {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(Tile), "r"(to), "r"(bytes) : "memory");
    }

    void find_largest(size_t row) {
        const float* from = scores + row * sizes.row;
        __m512 most = _mm512_set1_ps(-INFINITY);
        size_t key = 0;
        const size_t end = visible(row);
        for (; key + kLanes <= end; key += kLanes) most = _mm512_max_ps(most, _mm512_load_ps(from + key));
        if (key < end) most = _mm512_mask_max_ps(most, first_of(end - key), most, _mm512_load_ps(from + key));
        largest_scores[row] = _mm512_reduce_max_ps(most);
        sums[row] = _mm512_setzero_ps();
    }

    // The powers of `here` keys, rounded, and their sums; those of keys that the row does not see are zero.
    void make_powers(size_t row, size_t key, size_t here) {
        const float* from = scores + row * sizes.row + key;
        uint16_t* to = powers + row / kTile * kTile * kKeysAtOnce + row % kTile * kDepth;
        const __m512 largest = _mm512_set1_ps(largest_scores[row]);
        __m512 sum = sums[row];
        const size_t end = visible(row), valid = std::min(here, end - std::min(key, end)), whole = valid / kDepth * kDepth;
        const auto power = [&](size_t i) { return power_of_two_below_one(_mm512_sub_ps(_mm512_load_ps(from + i), largest)); };
        for (size_t i = 0; i < whole; i += kDepth, to += kTileNumbers) {
            const __m512 low = power(i), high = power(i + kLanes);
            sum = _mm512_add_ps(_mm512_add_ps(sum, low), high);
            _mm512_store_si512(to, rounded(low, high));
        }
        if (whole < valid) {
            const size_t rest = valid - whole;
            const __m512 low = _mm512_maskz_mov_ps(first_of(std::min(rest, kLanes)), power(whole));
            const __m512 high = _mm512_maskz_mov_ps(first_of(rest > kLanes ? rest - kLanes : 0), power(whole + kLanes));
            sum = _mm512_add_ps(_mm512_add_ps(sum, low), high);
            _mm512_store_si512(to, rounded(low, high));
            to += kTileNumbers;
        }
        for (size_t i = up_to(valid, kDepth); i < here; i += kDepth, to += kTileNumbers)
            _mm512_store_si512(to, _mm512_setzero_si512());
        sums[row] = sum;
    }

    // Adds what all queries read of `here` keys to the totals of B times sixteen columns.
    template <int B>
    void read(size_t key, size_t here, size_t column) {
        float *upper = totals + column, *lower = upper + kTile * sizes.width;
        const size_t bytes = sizes.width * 4;
        if (key == 0) {
            zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
        } else {
            fetch<0>(upper, bytes), fetch<2>(lower, bytes);
            if constexpr (B == 2) fetch<1>(upper + kTile, bytes), fetch<3>(lower + kTile, bytes);
        }
        for (size_t i = 0; i < here; i += kDepth) {
            const uint16_t* value = values + (key + i) * sizes.width + column * kDepth;
            load_tile<4, kTileBytes>(powers + i * kTile, 64), load_tile<6, kTileBytes>(value, 64);
            multiply_brain_floats<0, 4, 6>();
            load_tile<5, kTileBytes>(powers + kTile * kKeysAtOnce + i * kTile, 64);
            multiply_brain_floats<2, 5, 6>();
            if constexpr (B == 2) {
                load_tile<7, kTileBytes>(value + kTileNumbers, 64);
                multiply_brain_floats<1, 4, 7>(), multiply_brain_floats<3, 5, 7>();
            }
        }
        keep<0>(upper, bytes), keep<2>(lower, bytes);
        if constexpr (B == 2) keep<1>(upper + kTile, bytes), keep<3>(lower + kTile, bytes);
    }
    template <int Tile>
    static void fetch(const float* from, size_t bytes) {
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(from), "r"(bytes) : "memory");
    }

    void give(size_t row) {
        float* to = a.out + ((first + row) * a.heads + head) * a.width;
        const Lanes inverse = spread(1.0f / sum({sums[row]}));
        for (size_t c = 0; c < a.width; c += kLanes)
            store(to + c, load(totals + row * sizes.width + c) * inverse, std::min(kLanes, a.width - c));
    }

    const Attention& a;
    const Sizes sizes;
    const size_t head, first, count, seen;
    const uint16_t *keys, *values;
    float *totals, *scores;
    uint16_t *q, *powers;
    float largest_scores[kQueries];
    __m512 sums[kQueries];
};

size_t packed_bytes(const Attention& a) { return a.kv_heads * Sizes(a).head() * 2; }
void attend(const Attention& a, size_t task, const uint8_t* packed, uint8_t* scratch) {
    Block(a, task, packed, scratch).run();
}

}  // namespace

const Bf16Attention kAmxAttention = {packed_bytes, tasks_to_pack, pack, Block::tasks, Block::scratch, attend};

}  // namespace handlens
