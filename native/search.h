// The search for scales. handlens/quant/search.py says what is done and why; this is the same in lanes.
//
// x are the numbers of a part (a block, or a sixteenth or eighth of one), w their importance; without importance w is
// not read. All sums go from the first number to the last.
#pragma once

#include <array>
#include <limits>

#include "vectors.h"

namespace handlens {
namespace {

// Whole numbers from Low to High.
template <int Low, int High>
struct Whole {
    static V nearest(V x) { return whole(least(most(x, splat(Low)), splat(High))); }
    static uint8_t code(float level) { return static_cast<uint8_t>(static_cast<int>(level) - Low); }
};

constexpr int kUneven[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The sixteen levels of IQ4.
struct Uneven {
    static V nearest(V x) {
        V level = splat(kUneven[0]);
        for (size_t i = 1; i < 16; i++) {
            const float middle = 0.5f * (kUneven[i - 1] + kUneven[i]);
            level += pick(x > middle, splat(kUneven[i] - kUneven[i - 1]), splat(0.0f));
        }
        return level;
    }
    static uint8_t code(float level) {
        uint8_t index = 0;
        while (kUneven[index] < level) index++;
        return index;
    }
};

// Sums over a part: of w x l and w l l for the levels l.
struct Fit {
    V products, squares;
};

template <class Levels, size_t N, bool Weighted>
Fit fit(const V* x, const V* w, V inverse) {
    Fit sums{};
    for (size_t i = 0; i < N; i++) {
        const V level = Levels::nearest(x[i] * inverse), weighted = Weighted ? w[i] * level : level;
        sums.products += weighted * x[i];
        sums.squares += weighted * level;
    }
    return sums;
}

template <size_t N>
V extreme_of(const V* x) {
    V extreme{};
    for (size_t i = 0; i < N; i++) extreme = pick(magnitude(x[i]) > magnitude(extreme), x[i], extreme);
    return extreme;
}

// The best scale found, and the sum of w l l there.
struct Scale {
    V scale, squares;
};

template <class Levels, size_t N, bool Weighted, size_t Reaches>
Scale search_scale(const V* x, const V* w, const std::array<float, Reaches>& reaches, size_t rounds) {
    Scale best{};
    V gain{};
    const auto attempt = [&](V inverse) {
        const Fit sums = fit<Levels, N, Weighted>(x, w, inverse);
        const V scale = sums.products * reciprocal(sums.squares), better_gain = scale * sums.products;
        const Mask better = better_gain > gain;
        gain = pick(better, better_gain, gain);
        best.scale = pick(better, scale, best.scale);
        best.squares = pick(better, sums.squares, best.squares);
    };
    const V unit = reciprocal(extreme_of<N>(x));
    for (const float reach : reaches) attempt(unit * reach);
    for (size_t round = 0; round < rounds; round++) attempt(reciprocal(best.scale));
    return best;
}

// The error of a scale with the nearest levels, and the sums for a better one.
struct Error {
    V error;
    Fit sums;
};

template <class Levels, size_t N, bool Weighted>
Error error_of(const V* x, const V* w, V scale) {
    Error found{};
    const V inverse = reciprocal(scale);
    for (size_t i = 0; i < N; i++) {
        const V level = Levels::nearest(x[i] * inverse), weighted = Weighted ? w[i] * level : level;
        const V rest = x[i] - scale * level;
        found.error += Weighted ? w[i] * (rest * rest) : rest * rest;
        found.sums.products += weighted * x[i];
        found.sums.squares += weighted * level;
    }
    return found;
}

// Sums over a part: of w c, w c c and w x c for the codes c.
struct LineFit {
    V codes, squares, products;
};

// x is about scale * code + offset. `stiffness` says how fast the error grows with a change of the scale.
struct Line {
    V scale, offset, stiffness;
};

// Codes that vary less than this share of their mean square are taken as constant.
constexpr float kConstant = 1e-5f;

// Sums that no code changes: of w and of w x.
struct Totals {
    V weights, numbers;
};

template <size_t N, bool Weighted>
Totals totals_of(const V* x, const V* w) {
    Totals totals{};
    for (size_t i = 0; i < N; i++) {
        totals.weights += Weighted ? w[i] : splat(1.0f);
        totals.numbers += Weighted ? w[i] * x[i] : x[i];
    }
    return totals;
}

// The best line: lines are tried that clip `clips` steps of the range on either side. Offsets above 0 are not allowed.
template <int Highest, size_t N, bool Weighted, size_t Clips>
Line search_line(const V* x, const V* w, const Totals& totals, const std::array<float, Clips>& clips, size_t rounds) {
    Line best{};
    V gain = splat(-std::numeric_limits<float>::infinity());
    const V mean = least(totals.numbers * reciprocal(totals.weights), splat(0.0f));
    const auto attempt = [&](V inverse, V offset) {
        LineFit sums{};
        for (size_t i = 0; i < N; i++) {
            const V code = Whole<0, Highest>::nearest((x[i] - offset) * inverse);
            const V weighted = Weighted ? w[i] * code : code;
            sums.codes += weighted;
            sums.squares += weighted * code;
            sums.products += weighted * x[i];
        }
        const V all = totals.weights * sums.squares, spread = all - sums.codes * sums.codes;
        const V scale_of_line =
            (totals.weights * sums.products - totals.numbers * sums.codes) * reciprocal(spread);
        const V offset_of_line = (totals.numbers - scale_of_line * sums.codes) * reciprocal(totals.weights);
        const Mask sloped = (spread > all * kConstant) & (offset_of_line <= 0.0f);
        const V scale = pick(sloped, scale_of_line, sums.products * reciprocal(sums.squares));
        const V new_offset = pick(sloped, offset_of_line, pick(sums.squares > 0.0f, splat(0.0f), mean));
        const V new_gain = scale * sums.products + new_offset * totals.numbers;
        const Mask better = new_gain > gain;
        gain = pick(better, new_gain, gain);
        best.scale = pick(better, scale, best.scale);
        best.offset = pick(better, new_offset, best.offset);
        best.stiffness = pick(better, pick(sloped, spread * reciprocal(totals.weights), sums.squares), best.stiffness);
    };
    V low{}, high = x[0];
    for (size_t i = 0; i < N; i++) {
        low = least(low, x[i]);
        high = most(high, x[i]);
    }
    const V step = (high - low) * (1.0f / Highest);
    const V inverse = reciprocal(step);
    for (const float below : clips)
        for (const float above : clips) attempt(inverse * (Highest / (Highest - below - above)), low + step * below);
    for (size_t round = 0; round < rounds; round++) attempt(reciprocal(best.scale), best.offset);
    return best;
}

// The error of a line with the nearest codes, and the sums for a better one.
struct LineError {
    V error;
    LineFit sums;
};

template <int Highest, size_t N, bool Weighted>
LineError error_of_line(const V* x, const V* w, V scale, V offset) {
    LineError found{};
    const V inverse = reciprocal(scale);
    for (size_t i = 0; i < N; i++) {
        const V shifted = x[i] - offset, code = Whole<0, Highest>::nearest(shifted * inverse);
        const V weighted = Weighted ? w[i] * code : code, rest = shifted - scale * code;
        found.error += Weighted ? w[i] * (rest * rest) : rest * rest;
        found.sums.codes += weighted;
        found.sums.squares += weighted * code;
        found.sums.products += weighted * x[i];
    }
    return found;
}

}  // namespace
}  // namespace handlens
