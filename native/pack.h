// Rows of GGUF tensors to the layouts of kernels.h.
#pragma once

#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace handlens {

// The scales of a block as the layout of its type wants them; what it does not want is not set.
struct BlockScales {
    uint8_t scale[2], minimum[2];  // float16
    float superscale;
    uint8_t factors[16], minima[16];
};

// Raised whenever packed bytes change, for packed weights are kept in files.
constexpr int kLayoutVersion = 2;

// A block type: its layout, what a block of it holds, and how that is read. `codes` gives the 32 codes of a group.
struct Source {
    std::string_view type;
    Layout layout;
    size_t weights, nbytes;
    void (*codes)(const uint8_t* block, size_t group, const uint8_t* grid, uint8_t* codes) = nullptr;
    void (*scales)(const uint8_t* block, BlockScales& scales) = nullptr;
    const std::array<uint8_t, 16>* levels = nullptr;  // the codes that four bits choose from
    size_t points = 0, point_columns = 0;             // of the grid of magnitudes that the type needs
};

std::span<const Source> sources();

// The source of this name, or null.
const Source* find_source(std::string_view type);

// Whether numbers of this source can be packed in this layout: its own, or float numbers in the two that are made of them.
constexpr bool packs_as(const Source& source, Layout layout) {
    return layout == source.layout ||
           (is_float(source.layout) && (layout == Layout::q8_row || layout == Layout::bf16_tiles));
}

// The grid [points, columns] of a source with each magnitude replaced by its place among the levels; empty if a number is
// none of them.
std::vector<uint8_t> places_of(const Source& source, std::span<const uint8_t> grid);

// Packs one block of rows, of which `data` holds the first `count`; codes and scales are those of the block. `grid` is that
// of `places_of`.
void pack_block(const Source& source, const Weights& shape, const uint8_t* data, size_t count, const uint8_t* grid,
                uint8_t* codes, uint8_t* scales);

// The numbers of one row of packed weights, with the bits that GGUF blocks stand for; of the layouts that keep what the file
// has.
void unpack_row(const Weights& weights, size_t row, float* numbers);

}  // namespace handlens
