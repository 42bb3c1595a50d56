// The tiles of AMX and the instructions on them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace handlens {
namespace {

// All eight tiles, of sixteen rows of 64 bytes each, for as long as this lives.
class Tiles {
public:
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        std::fill_n(config.rows, 8, 16);
        std::fill_n(config.row_bytes, 8, 64);
        asm volatile("ldtilecfg %0" ::"m"(config));
    }
    ~Tiles() { asm volatile("tilerelease" ::); }
    Tiles(const Tiles&) = delete;
};

// The instructions, whose tiles' numbers compilers want to see as they are written.
template <int Tile>
inline __attribute__((always_inline)) void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
// `Bytes` from the first row's first byte to the last one's last are read or written.
template <int Tile, size_t Bytes>
inline __attribute__((always_inline)) void load_tile(const void* from, size_t stride) {
    const auto& memory = *static_cast<const uint8_t(*)[Bytes]>(from);
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(from), "r"(stride), "m"(memory));
}
// The same of what the first cache need not keep.
template <int Tile, size_t Bytes>
inline __attribute__((always_inline)) void load_tile_once(const void* from, size_t stride) {
    const auto& memory = *static_cast<const uint8_t(*)[Bytes]>(from);
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(from), "r"(stride), "m"(memory));
}
template <int Tile, size_t Bytes>
inline __attribute__((always_inline)) void store_tile(void* to, size_t stride) {
    auto& memory = *static_cast<uint8_t(*)[Bytes]>(to);
    asm volatile("tilestored %%tmm%c1, (%2,%3,1)" : "=m"(memory) : "i"(Tile), "r"(to), "r"(stride));
}
// Adds the products of bfloat16 numbers, two at a time.
template <int Products, int Left, int Right>
inline __attribute__((always_inline)) void multiply_brain_floats() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Products), "i"(Left), "i"(Right));
}

}  // namespace
}  // namespace handlens
