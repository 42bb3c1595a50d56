// Rows of GGUF tensors to the layouts of kernels.h.
#pragma once

#include <span>
#include <string_view>

#include "kernels.h"

namespace handlens {

// A type that can be packed as it is: its layout, and what a block of it holds.
struct Source {
    std::string_view type;
    Layout layout;
    size_t weights, nbytes;
};

std::span<const Source> sources();

// The source of this name, or null.
const Source* find_source(std::string_view type);

// Whether numbers of this source can be packed in this layout: its own, or rows of float numbers as int8.
constexpr bool packs_as(const Source& source, Layout layout) {
    return layout == source.layout || (is_float(source.layout) && layout == Layout::q8_row);
}

// Packs the rows [rows, columns] of `data` that belong to block `block`; codes and scales are all of the weights'.
void pack_block(const Source& source, const Weights& shape, const uint8_t* data, size_t block, uint8_t* codes,
                uint8_t* scales);

}  // namespace handlens
