#include "pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "half.h"

namespace handlens {
namespace {

uint32_t four_bytes(const uint8_t* at) {
    uint32_t word;
    std::memcpy(&word, at, 4);
    return word;
}

// Puts the codes of row r of a block in a group where kernels.h says, four at a time.
void write_codes(Layout layout, const uint8_t* codes, size_t interleave, size_t r, uint8_t* group) {
    const Codes kind = form(layout).codes;
    if (kind == Codes::bytes) {
        for (size_t step = 0; step < 8; step++) std::memcpy(group + (step * interleave + r) * 4, codes + step * 4, 4);
        return;
    }
    uint32_t fifth = 0, two[2] = {};
    for (size_t step = 0; step < 4; step++) {
        const uint32_t low = four_bytes(codes + step * 4), high = four_bytes(codes + 16 + step * 4);
        const uint32_t both = (low & 0x0f0f0f0f) | (high & 0x0f0f0f0f) << 4;
        std::memcpy(group + (step * interleave + r) * 4, &both, 4);
        fifth |= (low >> 4 & 0x01010101) << step | (high >> 4 & 0x01010101) << (step + 4);
        two[0] |= (low >> 4 & 0x03030303) << 2 * step;
        two[1] |= (high >> 4 & 0x03030303) << 2 * step;
    }
    uint8_t* upper = group + 16 * interleave + r * 4;
    if (kind == Codes::five) std::memcpy(upper, &fifth, 4);
    for (size_t half = 0; kind == Codes::six && half < 2; half++) std::memcpy(upper + half * interleave * 4, &two[half], 4);
}

// Puts the scales of row r of a block in a run of groups.
void write_scales(Layout layout, const BlockScales& from, size_t interleave, size_t r, uint8_t* run) {
    const Form f = form(layout);
    const size_t factors = kGroupsPerSuperblock * f.parts;
    if (f.scales == Scales::factors)
        std::memcpy(run + r * 4, &from.superscale, 4);
    else
        std::memcpy(run + r * 2, from.scale, 2);
    if (has_minimum(layout)) std::memcpy(run + (interleave + r) * 2, from.minimum, 2);
    if (f.scales != Scales::minima && f.scales != Scales::factors) return;
    for (size_t i = 0; i < factors; i++) {
        run[interleave * (4 + i) + r] = from.factors[i];
        if (f.scales == Scales::minima) run[interleave * (4 + factors + i) + r] = from.minima[i];
    }
}

template <class Number>
void widen(const uint8_t* row, size_t count, float* numbers) {
    for (size_t i = 0; i < count; i++) {
        Number number;
        std::memcpy(&number, row + i * sizeof number, sizeof number);
        numbers[i] = widened(number);
    }
}

// A row of a float source as float32, filled up with zeros to whole groups.
std::span<const float> widened_row(const Source& source, const Weights& shape, const uint8_t* row) {
    thread_local std::vector<float> numbers;
    numbers.assign(shape.groups() * kGroup, 0.0f);
    if (source.layout == Layout::f32) widen<float>(row, shape.columns, numbers.data());
    if (source.layout == Layout::f16) widen<Half>(row, shape.columns, numbers.data());
    if (source.layout == Layout::bf16) widen<BrainFloat>(row, shape.columns, numbers.data());
    return numbers;
}

// A row of numbers, rounded to bfloat16 (ties to even; what is no number stays none), where kernels.h says.
void write_brain_float_row(std::span<const float> numbers, size_t interleave, size_t r, uint8_t* codes) {
    thread_local std::vector<uint16_t> rounded;
    rounded.resize(numbers.size());
    for (size_t c = 0; c < numbers.size(); c++) {
        const uint32_t bits = std::bit_cast<uint32_t>(numbers[c]);
        const uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1), none = bits | 0x400000;
        rounded[c] = static_cast<uint16_t>((numbers[c] == numbers[c] ? nearest : none) >> 16);
    }
    for (size_t c = 0; c < rounded.size(); c += 2) std::memcpy(codes + (c / 2 * interleave + r) * 4, &rounded[c], 4);
}

// A row of numbers as int8 with one scale; a row with something that is no finite number gets a scale that is none.
void write_int8_row(std::span<const float> numbers, const Weights& shape, size_t r, uint8_t* codes, uint8_t* scales) {
    int32_t bits = 0;  // of the largest magnitude, which floats and their bits order alike
    for (const float number : numbers) bits = std::max(bits, std::bit_cast<int32_t>(number) & 0x7fffffff);
    const float largest = std::bit_cast<float>(bits);
    const bool finite = std::isfinite(largest);
    // Below this one over the scale would be infinite.
    const bool zero = !finite || largest < 1e-30f;
    const float scale = !finite ? __builtin_nanf("") : zero ? 0 : largest / 127;
    std::memcpy(scales + 4 * r, &scale, 4);
    const float inverse = zero ? 0 : 127 / largest;
    constexpr float kRounder = 12582912;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    for (size_t g = 0; g < shape.groups(); g++) {
        uint8_t of_group[kGroup];
        for (size_t i = 0; i < kGroup; i++) {
            const float number = finite ? numbers[g * kGroup + i] : 0;
            of_group[i] = static_cast<uint8_t>(std::bit_cast<int32_t>(number * inverse + (kRounder + 128)));
        }
        write_codes(Layout::q8_row, of_group, shape.interleave, r, codes + g * shape.interleave * kGroup);
    }
}

// The code of a column in a group of row r, which `write_codes` put there; `group` is the block's.
uint8_t code_at(const Weights& w, const uint8_t* group, size_t r, size_t column) {
    const size_t step = column / 4, k = column % 4, interleave = w.interleave;
    const Codes kind = form(w.layout).codes;
    if (kind == Codes::bytes) return group[(step * interleave + r) * 4 + k];
    const uint8_t both = group[(step % 4 * interleave + r) * 4 + k], four = step < 4 ? both & 15 : both >> 4;
    const uint8_t* upper = group + 16 * interleave + r * 4 + k;
    if (kind == Codes::levels) return w.levels[four];
    if (kind == Codes::five) return static_cast<uint8_t>(four | (*upper >> step & 1) << 4);
    if (kind == Codes::six) return static_cast<uint8_t>(four | (upper[step / 4 * interleave * 4] >> step % 4 * 2 & 3) << 4);
    return four;
}

// The scale and the minimum, or 0, of a part of group g in row r; `scales` are those of the block.
std::pair<float, float> scales_at(const Weights& w, const uint8_t* scales, size_t r, size_t g, size_t part) {
    const Form f = form(w.layout);
    const size_t interleave = w.interleave, factors = kGroupsPerSuperblock * f.parts;
    const uint8_t* run = scales + g / scale_groups(w.layout) * interleave * row_scale_bytes(w.layout);
    const uint8_t* factor = run + interleave * (4 + g % kGroupsPerSuperblock * f.parts + part) + r;
    const auto half = [&](size_t which) { return from_half(run + (which * interleave + r) * 2); };
    switch (f.scales) {
        case Scales::factors: return {std::bit_cast<float>(four_bytes(run + r * 4)) * static_cast<int8_t>(*factor), 0.0f};
        case Scales::minima: return {half(0) * *factor, half(1) * factor[interleave * factors]};
        case Scales::pair: return {half(0), half(1)};
        default: return {half(0), 0.0f};
    }
}

template <class Number>
void unpack_floats(const Weights& w, size_t row, float* numbers) {
    const uint8_t* block = w.codes + row / w.interleave * w.block_bytes();
    for (size_t c = 0; c < w.columns; c++) {
        Number number;
        std::memcpy(&number, block + (c * w.interleave + row % w.interleave) * sizeof number, sizeof number);
        numbers[c] = widened(number);
    }
}

}  // namespace

void unpack_row(const Weights& w, size_t row, float* numbers) {
    if (w.layout == Layout::f32) return unpack_floats<float>(w, row, numbers);
    if (w.layout == Layout::f16) return unpack_floats<Half>(w, row, numbers);
    if (w.layout == Layout::bf16) return unpack_floats<BrainFloat>(w, row, numbers);
    const Form f = form(w.layout);
    const size_t block = row / w.interleave, r = row % w.interleave, width = kGroup / f.parts;
    const uint8_t *codes = w.codes + block * w.block_bytes(), *scales = w.scales + block * w.scale_bytes();
    for (size_t column = 0; column < w.columns; column += width) {
        const size_t g = column / kGroup, first = column % kGroup;
        const auto [scale, minimum] = scales_at(w, scales, r, g, first / width);
        const uint8_t* group = codes + g * w.interleave * row_code_bytes(w.layout);
        for (size_t c = 0; c < width; c++)
            numbers[column + c] = scale * static_cast<float>(code_at(w, group, r, first + c) - f.offset) - minimum;
    }
}

void pack_block(const Source& source, const Weights& shape, const uint8_t* data, size_t count, const uint8_t* grid,
                uint8_t* codes, uint8_t* scales) {
    const size_t row_bytes = shape.columns / source.weights * source.nbytes, interleave = shape.interleave;
    // Rows that fill the last block up are zero in scale and code.
    std::memset(codes, 0, shape.block_bytes());
    std::memset(scales, 0, shape.scale_bytes());
    for (size_t r = 0; r < count; r++) {
        const uint8_t* row = data + r * row_bytes;
        if (shape.layout == Layout::bf16_tiles) {
            write_brain_float_row(widened_row(source, shape, row), interleave, r, codes);
            continue;
        }
        if (is_float(shape.layout)) {
            const size_t size = source.nbytes;
            for (size_t c = 0; c < shape.columns; c++) std::memcpy(codes + (c * interleave + r) * size, row + c * size, size);
            continue;
        }
        if (shape.layout == Layout::q8_row) {
            write_int8_row(widened_row(source, shape, row), shape, r, codes, scales);
            continue;
        }
        const size_t groups = source.weights / kGroup, group_bytes = interleave * row_code_bytes(shape.layout);
        for (size_t i = 0; i < shape.columns / source.weights; i++, row += source.nbytes) {
            BlockScales of_block;
            source.scales(row, of_block);
            write_scales(shape.layout, of_block, interleave, r, scales + i * interleave * row_scale_bytes(shape.layout));
            for (size_t g = 0; g < groups; g++) {
                uint8_t of_group[kGroup];
                source.codes(row, g, grid, of_group);
                write_codes(shape.layout, of_group, interleave, r, codes + (i * groups + g) * group_bytes);
            }
        }
    }
}

}  // namespace handlens
