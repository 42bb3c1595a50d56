// The block types: what is searched for in which part, and where the bits of a block go (see gguf/blocks.py for the
// layouts). Included once by the file of each instruction set.
#pragma once

#include <algorithm>

#include "quantizers.h"
#include "search.h"

namespace handlens {
namespace {

// Fields of `Bits` bits, of each `Run` bytes first all lowest fields, then the next ones: the inverse of `_unpack`.
template <size_t Bits, size_t Run, size_t Count>
void put(uint8_t* bytes, const uint8_t* fields) {
    constexpr size_t kGroupFields = Run * 8 / Bits, kFieldMask = (1 << Bits) - 1;
    std::memset(bytes, 0, Count * Bits / 8);
    for (size_t i = 0; i < Count; i++) {
        uint8_t& byte = bytes[i / kGroupFields * Run + i % Run];
        byte |= static_cast<uint8_t>((fields[i] & kFieldMask) << (i % kGroupFields / Run * Bits));
    }
}

template <size_t Count>
std::array<uint8_t, Count> shifted(const uint8_t* fields, int bits) {
    std::array<uint8_t, Count> high;
    for (size_t i = 0; i < Count; i++) high[i] = fields[i] >> bits;
    return high;
}

inline void put_half(uint8_t* bytes, float number) {
    const uint16_t bits = to_half(number);
    std::memcpy(bytes, &bits, 2);
}

// How often what was found is improved by turns: codes from the scale, the scale from the codes.
constexpr size_t kRounds = 4;

// 32 numbers, one scale.

struct Q4_0 {
    static constexpr size_t nbytes = 18;
    using Levels = Whole<-8, 7>;
    static constexpr std::array reaches{-8.5f, -8.25f, -8.0f, -7.75f, -7.5f, -7.25f, -7.0f, -6.5f,
                                        8.0f,  7.75f,  7.5f,  7.25f,  7.0f,  6.75f,  6.5f,  6.0f};
    static void put(uint8_t* out, float scale, const uint8_t* codes) {
        put_half(out, scale);
        handlens::put<4, 16, 32>(out + 2, codes);
    }
};

struct IQ4_NL {
    static constexpr size_t nbytes = 18;
    using Levels = Uneven;
    static constexpr std::array reaches{-134.0f, -129.0f, -124.0f, -119.0f, -114.0f, -109.0f, -104.0f, -99.0f,
                                        120.0f,  115.0f,  110.0f,  105.0f,  100.0f,  95.0f,   90.0f,   85.0f};
    static void put(uint8_t* out, float scale, const uint8_t* codes) { Q4_0::put(out, scale, codes); }
};

struct Q5_0 {
    static constexpr size_t nbytes = 22;
    using Levels = Whole<-16, 15>;
    static constexpr std::array reaches{-16.5f, -16.25f, -16.0f, -15.75f, -15.5f, -15.0f, -14.5f, -14.0f,
                                        16.0f,  15.5f,   15.25f, 15.0f,   14.75f, 14.5f,  14.0f,  13.5f};
    static void put(uint8_t* out, float scale, const uint8_t* codes) {
        put_half(out, scale);
        handlens::put<1, 1, 32>(out + 2, shifted<32>(codes, 4).data());
        handlens::put<4, 16, 32>(out + 6, codes);
    }
};

struct Q8_0 {
    static constexpr size_t nbytes = 34;
    using Levels = Whole<-127, 127>;
    static constexpr std::array reaches{127.0f, 127.25f, 126.75f, 126.5f, 126.25f, 126.0f, 125.5f, 125.0f};
    static void put(uint8_t* out, float scale, const uint8_t* codes) {
        put_half(out, scale);
        for (size_t i = 0; i < 32; i++) out[2 + i] = static_cast<uint8_t>(codes[i] - 127);
    }
};

// The scale as it is stored: of some float16 numbers that with the smallest error.
template <class T, bool Weighted>
void write_scaled(const V* x, const V* w, size_t lanes, uint8_t* out) {
    V scale = search_scale<typename T::Levels, 32, Weighted>(x, w, T::reaches, kRounds).scale;
    V best{}, error = splat(std::numeric_limits<float>::infinity());
    const auto attempt = [&](V stored) {
        const Error found = error_of<typename T::Levels, 32, Weighted>(x, w, stored);
        const Mask better = found.error < error;
        error = pick(better, found.error, error);
        best = pick(better, stored, best);
        return found.sums.products * reciprocal(found.sums.squares);
    };
    attempt(half(extreme_of<32>(x) * (1.0f / T::reaches[0])));
    for (size_t round = 0; round < kRounds; round++) scale = attempt(half(scale));
    const V inverse = reciprocal(best);
    V levels[32];
    for (size_t i = 0; i < 32; i++) levels[i] = T::Levels::nearest(x[i] * inverse);
    for (size_t lane = 0; lane < lanes; lane++) {
        uint8_t codes[32];
        for (size_t i = 0; i < 32; i++) codes[i] = T::Levels::code(levels[i][lane]);
        T::put(out + lane * T::nbytes, best[lane], codes);
    }
}

// 32 numbers, a scale and an offset.

struct Q4_1 {
    static constexpr size_t nbytes = 20;
    static constexpr int highest = 15;
    static constexpr std::array clips{-0.5f, -0.25f, 0.0f, 0.25f, 0.5f, 0.75f, 1.0f};
    static void put(uint8_t* out, float scale, float offset, const uint8_t* codes) {
        put_half(out, scale);
        put_half(out + 2, offset);
        handlens::put<4, 16, 32>(out + 4, codes);
    }
};

struct Q5_1 {
    static constexpr size_t nbytes = 24;
    static constexpr int highest = 31;
    // The first puts what was Q4_1 on every second code, so that nothing gets lost.
    static constexpr std::array clips{-31.0f / 30.0f, -0.5f, -0.25f, 0.0f, 0.25f, 0.5f, 0.75f, 1.0f};
    static void put(uint8_t* out, float scale, float offset, const uint8_t* codes) {
        put_half(out, scale);
        put_half(out + 2, offset);
        handlens::put<1, 1, 32>(out + 4, shifted<32>(codes, 4).data());
        handlens::put<4, 16, 32>(out + 8, codes);
    }
};

// Numbers are taken from the highest on, so that offsets are never above 0.
template <class T, bool Weighted>
void write_lines(const V* x, const V* w, size_t lanes, uint8_t* out) {
    V top = x[0], shifted[32];
    for (size_t i = 1; i < 32; i++) top = most(top, x[i]);
    for (size_t i = 0; i < 32; i++) shifted[i] = x[i] - top;
    const Totals totals = totals_of<32, Weighted>(shifted, w);
    Line line = search_line<T::highest, 32, Weighted>(shifted, w, totals, T::clips, kRounds);
    V best_scale{}, best_offset{}, error = splat(std::numeric_limits<float>::infinity());
    for (size_t round = 0; round < kRounds; round++) {
        const V scale = half(line.scale), offset = half(line.offset + top);
        const LineError found = error_of_line<T::highest, 32, Weighted>(x, w, scale, offset);
        const Mask better = found.error < error;
        error = pick(better, found.error, error);
        best_scale = pick(better, scale, best_scale);
        best_offset = pick(better, offset, best_offset);
        // the scale stays: its rounding is the smaller one, and the offset can make up for it
        line.offset = (totals.numbers - scale * found.sums.codes) * reciprocal(totals.weights);
    }
    const V inverse = reciprocal(best_scale);
    V codes_of[32];
    for (size_t i = 0; i < 32; i++) codes_of[i] = Whole<0, T::highest>::nearest((x[i] - best_offset) * inverse);
    for (size_t lane = 0; lane < lanes; lane++) {
        uint8_t codes[32];
        for (size_t i = 0; i < 32; i++) codes[i] = static_cast<uint8_t>(codes_of[i][lane]);
        T::put(out + lane * T::nbytes, best_scale[lane], best_offset[lane], codes);
    }
}

// 256 numbers in parts with scales of scales.

constexpr size_t kSuper = 256;
// How often the scales of the parts are chosen anew after the scale over all was fitted to them.
constexpr size_t kRefinements = 3;

struct Q3_K {
    static constexpr size_t nbytes = 110, parts = 16;
    using Levels = Whole<-4, 3>;
    using Factors = Whole<-32, 31>;
    static constexpr std::array reaches{-4.5f, -4.25f, -4.0f, -3.75f, -3.5f, -3.25f, -3.0f, -2.75f, -2.5f, -2.0f,
                                        4.0f,  3.75f,  3.5f,  3.25f,  3.0f,  2.75f,  2.5f,  2.25f,  2.0f,  1.5f};
    static void put(uint8_t* out, float scale, const uint8_t* factors, const uint8_t* codes) {
        handlens::put<1, 32, 256>(out, shifted<256>(codes, 2).data());
        handlens::put<2, 32, 256>(out + 32, codes);
        handlens::put<4, 8, 16>(out + 96, factors);
        handlens::put<2, 4, 16>(out + 104, shifted<16>(factors, 4).data());
        put_half(out + 108, scale);
    }
};

struct Q6_K {
    static constexpr size_t nbytes = 210, parts = 16;
    using Levels = Whole<-32, 31>;
    using Factors = Whole<-128, 127>;
    static constexpr std::array reaches{-32.5f, -32.0f, -31.5f, -31.0f, -30.5f, -30.0f, -29.0f,
                                        32.0f,  31.5f,  31.0f,  30.5f,  30.0f,  29.5f,  28.5f};
    static void put(uint8_t* out, float scale, const uint8_t* factors, const uint8_t* codes) {
        handlens::put<4, 64, 256>(out, codes);
        handlens::put<2, 32, 256>(out + 128, shifted<256>(codes, 4).data());
        for (size_t part = 0; part < parts; part++) out[192 + part] = static_cast<uint8_t>(factors[part] - 128);
        put_half(out + 208, scale);
    }
};

struct IQ4_XS {
    static constexpr size_t nbytes = 136, parts = 8;
    using Levels = Uneven;
    using Factors = Whole<-32, 31>;
    static constexpr auto& reaches = IQ4_NL::reaches;
    static void put(uint8_t* out, float scale, const uint8_t* factors, const uint8_t* codes) {
        put_half(out, scale);
        handlens::put<2, 1, 8>(out + 2, shifted<8>(factors, 4).data());
        handlens::put<4, 1, 8>(out + 4, factors);
        handlens::put<4, 16, 256>(out + 8, codes);
    }
};

// Where the largest scale of a part lands among the factors of a signed type, as shares of the lowest factor.
constexpr std::array kSignedShares{1.0f,    0.99f,   0.98f,   0.97f,   0.96f,   0.95f,   0.94f,   0.93f,
                                   0.92f,   0.91f,   0.90f,   0.88f,   0.86f,   0.84f,   0.82f,   0.80f,
                                   -0.99f,  -0.98f,  -0.97f,  -0.96f,  -0.95f,  -0.94f,  -0.93f,  -0.92f,
                                   -0.91f,  -0.90f,  -0.89f,  -0.87f,  -0.85f,  -0.83f,  -0.81f,  -0.79f};

template <int Lowest>
constexpr auto shares_of() {
    std::array reaches = kSignedShares;
    for (float& reach : reaches) reach *= Lowest;
    return reaches;
}

template <class T, bool Weighted>
void write_super_scaled(const V* x, const V* w, size_t lanes, uint8_t* out) {
    using Levels = typename T::Levels;
    using Factors = typename T::Factors;
    constexpr size_t kParts = T::parts, kSize = kSuper / kParts;
    constexpr int kLowest = kParts == 16 && std::is_same_v<Levels, Whole<-32, 31>> ? -128 : -32;
    V scales[kParts], squares[kParts], factors[kParts];
    for (size_t part = 0; part < kParts; part++) {
        const Scale found = search_scale<Levels, kSize, Weighted>(x + part * kSize, w + part * kSize, T::reaches, kRounds);
        scales[part] = found.scale;
        squares[part] = found.squares;
    }
    V scale = half(search_scale<Factors, kParts, true>(scales, squares, shares_of<kLowest>(), kRounds).scale);
    const V first_inverse = reciprocal(scale);
    for (size_t part = 0; part < kParts; part++) factors[part] = Factors::nearest(scales[part] * first_inverse);
    for (size_t round = 0; round <= kRefinements; round++) {
        V products{}, all_squares{};
        for (size_t part = 0; part < kParts; part++) {
            V error = splat(std::numeric_limits<float>::infinity()), chosen{};
            Fit sums{};
            for (const float step : {0.0f, -1.0f, 1.0f}) {
                const V factor = Factors::nearest(factors[part] + step);
                const Error found =
                    error_of<Levels, kSize, Weighted>(x + part * kSize, w + part * kSize, scale * factor);
                const Mask better = found.error < error;
                error = pick(better, found.error, error);
                chosen = pick(better, factor, chosen);
                sums.products = pick(better, found.sums.products, sums.products);
                sums.squares = pick(better, found.sums.squares, sums.squares);
            }
            factors[part] = chosen;
            products += chosen * sums.products;
            all_squares += chosen * chosen * sums.squares;
        }
        if (round < kRefinements) scale = half(products * reciprocal(all_squares));
    }
    V levels[kSuper];
    for (size_t part = 0; part < kParts; part++) {
        const V inverse = reciprocal(scale * factors[part]);
        for (size_t i = part * kSize; i < (part + 1) * kSize; i++) levels[i] = Levels::nearest(x[i] * inverse);
    }
    for (size_t lane = 0; lane < lanes; lane++) {
        uint8_t codes[kSuper], stored[kParts];
        for (size_t i = 0; i < kSuper; i++) codes[i] = Levels::code(levels[i][lane]);
        for (size_t part = 0; part < kParts; part++) stored[part] = Factors::code(factors[part][lane]);
        T::put(out + lane * T::nbytes, scale[lane], stored, codes);
    }
}

// The 6-bit factors of Q4_K and Q5_K: see `_scales_and_minima`.
inline void put_factors(uint8_t* out, const uint8_t* scales, const uint8_t* minima) {
    for (size_t i = 0; i < 4; i++) {
        out[i] = static_cast<uint8_t>(scales[i] | scales[i + 4] >> 4 << 6);
        out[i + 4] = static_cast<uint8_t>(minima[i] | minima[i + 4] >> 4 << 6);
        out[i + 8] = static_cast<uint8_t>((scales[i + 4] & 15) | (minima[i + 4] & 15) << 4);
    }
}

struct Q2_K {
    static constexpr size_t nbytes = 84, parts = 16;
    static constexpr int highest = 3, most = 15;
    static constexpr std::array clips{-0.3f, -0.1f, 0.1f, 0.2f, 0.3f, 0.5f};
    static void put(uint8_t* out, float scale, float minimum, const uint8_t* scales, const uint8_t* minima,
                    const uint8_t* codes) {
        for (size_t part = 0; part < parts; part++)
            out[part] = static_cast<uint8_t>(scales[part] | minima[part] << 4);
        handlens::put<2, 32, 256>(out + 16, codes);
        put_half(out + 80, scale);
        put_half(out + 82, minimum);
    }
};

struct Q4_K {
    static constexpr size_t nbytes = 144, parts = 8;
    static constexpr int highest = 15, most = 63;
    static constexpr std::array clips{-0.4f, 0.0f, 0.4f, 0.8f};
    static void put(uint8_t* out, float scale, float minimum, const uint8_t* scales, const uint8_t* minima,
                    const uint8_t* codes) {
        put_half(out, scale);
        put_half(out + 2, minimum);
        put_factors(out + 4, scales, minima);
        handlens::put<4, 32, 256>(out + 16, codes);
    }
};

struct Q5_K {
    static constexpr size_t nbytes = 176, parts = 8;
    static constexpr int highest = 31, most = 63;
    static constexpr std::array clips{-0.4f, 0.0f, 0.4f, 0.8f};
    static void put(uint8_t* out, float scale, float minimum, const uint8_t* scales, const uint8_t* minima,
                    const uint8_t* codes) {
        put_half(out, scale);
        put_half(out + 2, minimum);
        put_factors(out + 4, scales, minima);
        handlens::put<1, 32, 256>(out + 16, shifted<256>(codes, 4).data());
        handlens::put<4, 32, 256>(out + 48, codes);
    }
};

// The same for factors from 0 on, as shares of the highest.
constexpr std::array kShares{1.008f, 1.0f,   0.992f, 0.984f, 0.976f, 0.968f, 0.96f,  0.952f, 0.944f, 0.936f, 0.928f,
                             0.92f,  0.912f, 0.904f, 0.896f, 0.888f, 0.88f,  0.865f, 0.85f,  0.835f, 0.82f,  0.80f,
                             0.78f,  0.76f};

template <int Highest>
constexpr auto shares_up_to() {
    std::array reaches = kShares;
    for (float& reach : reaches) reach *= Highest;
    return reaches;
}

template <class T, bool Weighted>
void write_super_lines(const V* x, const V* w, size_t lanes, uint8_t* out) {
    using Factors = Whole<0, T::most>;
    constexpr size_t kParts = T::parts, kSize = kSuper / kParts;
    V scales[kParts], minima[kParts], stiffness[kParts], weights[kParts], scale_factors[kParts], minimum_factors[kParts];
    Totals totals[kParts];
    for (size_t part = 0; part < kParts; part++) {
        totals[part] = totals_of<kSize, Weighted>(x + part * kSize, w + part * kSize);
        const Line line = search_line<T::highest, kSize, Weighted>(x + part * kSize, w + part * kSize, totals[part],
                                                                   T::clips, kRounds);
        scales[part] = line.scale;
        minima[part] = -line.offset;
        stiffness[part] = line.stiffness;
        weights[part] = totals[part].weights;
    }
    V scale = half(search_scale<Factors, kParts, true>(scales, stiffness, shares_up_to<T::most>(), kRounds).scale);
    V minimum = half(search_scale<Factors, kParts, true>(minima, weights, shares_up_to<T::most>(), kRounds).scale);
    for (size_t part = 0; part < kParts; part++) {
        scale_factors[part] = Factors::nearest(scales[part] * reciprocal(scale));
        minimum_factors[part] = Factors::nearest(minima[part] * reciprocal(minimum));
    }
    constexpr float kSteps[][2] = {{0, 0}, {1, 1}, {-1, -1}, {1, 0}, {-1, 0}, {0, 1}, {0, -1}};
    for (size_t round = 0; round <= kRefinements; round++) {
        // Sums of the two normal equations for scale and minimum.
        V aa{}, ab{}, bb{}, ax{}, bx{};
        for (size_t part = 0; part < kParts; part++) {
            V error = splat(std::numeric_limits<float>::infinity()), scale_factor{}, minimum_factor{};
            LineFit sums{};
            for (const auto& [up, down] : kSteps) {
                const V a = Factors::nearest(scale_factors[part] + up), b = Factors::nearest(minimum_factors[part] + down);
                const LineError found = error_of_line<T::highest, kSize, Weighted>(x + part * kSize, w + part * kSize,
                                                                                  scale * a, -(minimum * b));
                const Mask better = found.error < error;
                error = pick(better, found.error, error);
                scale_factor = pick(better, a, scale_factor);
                minimum_factor = pick(better, b, minimum_factor);
                sums.codes = pick(better, found.sums.codes, sums.codes);
                sums.squares = pick(better, found.sums.squares, sums.squares);
                sums.products = pick(better, found.sums.products, sums.products);
            }
            scale_factors[part] = scale_factor;
            minimum_factors[part] = minimum_factor;
            aa += scale_factor * scale_factor * sums.squares;
            ab -= scale_factor * minimum_factor * sums.codes;
            bb += minimum_factor * minimum_factor * weights[part];
            ax += scale_factor * sums.products;
            bx -= minimum_factor * totals[part].numbers;
        }
        if (round == kRefinements) break;
        const V determinant = aa * bb - ab * ab, inverse = reciprocal(determinant);
        const V new_scale = (ax * bb - bx * ab) * inverse, new_minimum = (aa * bx - ab * ax) * inverse;
        const Mask sound = (determinant > aa * bb * kConstant) & (new_scale >= 0.0f) & (new_minimum >= 0.0f);
        scale = half(pick(sound, new_scale, scale));
        minimum = half(pick(sound, new_minimum, minimum));
    }
    V codes_of[kSuper];
    for (size_t part = 0; part < kParts; part++) {
        const V inverse = reciprocal(scale * scale_factors[part]), offset = -(minimum * minimum_factors[part]);
        for (size_t i = part * kSize; i < (part + 1) * kSize; i++)
            codes_of[i] = Whole<0, T::highest>::nearest((x[i] - offset) * inverse);
    }
    for (size_t lane = 0; lane < lanes; lane++) {
        uint8_t codes[kSuper], stored[2][kParts];
        for (size_t i = 0; i < kSuper; i++) codes[i] = static_cast<uint8_t>(codes_of[i][lane]);
        for (size_t part = 0; part < kParts; part++) {
            stored[0][part] = static_cast<uint8_t>(scale_factors[part][lane]);
            stored[1][part] = static_cast<uint8_t>(minimum_factors[part][lane]);
        }
        T::put(out + lane * T::nbytes, scale[lane], minimum[lane], stored[0], stored[1], codes);
    }
}

// Blocks to lanes: a lane without a block has zeros.
template <size_t Weights, size_t Nbytes, void (*Plain)(const V*, const V*, size_t, uint8_t*),
          void (*Important)(const V*, const V*, size_t, uint8_t*)>
void write_all(const float* x, const float* importance, size_t count, uint8_t* out) {
    V numbers[Weights], weights[Weights];
    for (size_t first = 0; first < count; first += kLanes) {
        const size_t lanes = std::min(kLanes, count - first);
        const auto spread = [&](const float* from, V* to) {
            for (size_t i = 0; i < Weights; i++) to[i] = V{};
            for (size_t lane = 0; lane < lanes; lane++)
                for (size_t i = 0; i < Weights; i++) to[i][lane] = from[(first + lane) * Weights + i];
        };
        spread(x, numbers);
        if (importance) spread(importance, weights);
        (importance ? Important : Plain)(numbers, weights, lanes, out + first * Nbytes);
    }
}

#define HANDLENS_QUANTIZER(T, weights, write) \
    {#T, weights, T::nbytes, &write_all<weights, T::nbytes, &write<T, false>, &write<T, true>>}

constexpr Quantizer kQuantizers[] = {
    HANDLENS_QUANTIZER(Q4_0, 32, write_scaled),         HANDLENS_QUANTIZER(Q4_1, 32, write_lines),
    HANDLENS_QUANTIZER(Q5_0, 32, write_scaled),         HANDLENS_QUANTIZER(Q5_1, 32, write_lines),
    HANDLENS_QUANTIZER(Q8_0, 32, write_scaled),         HANDLENS_QUANTIZER(IQ4_NL, 32, write_scaled),
    HANDLENS_QUANTIZER(Q2_K, 256, write_super_lines),   HANDLENS_QUANTIZER(Q3_K, 256, write_super_scaled),
    HANDLENS_QUANTIZER(Q4_K, 256, write_super_lines),   HANDLENS_QUANTIZER(Q5_K, 256, write_super_lines),
    HANDLENS_QUANTIZER(Q6_K, 256, write_super_scaled),  HANDLENS_QUANTIZER(IQ4_XS, 256, write_super_scaled),
};

}  // namespace
}  // namespace handlens
