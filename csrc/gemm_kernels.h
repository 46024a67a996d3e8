// What an ISA brings to every product, matrix or convolution: a tile of multiply-accumulates and the passes around it.
//
// Codes are packed into 32-bit WORDS of consecutive reduced elements: 4 bytes for instructions that multiply u8 by s8
// or s8 by s8, 2 int16 elsewhere. The left operand's words are broadcast one by one, the right operand's are read as vectors of W columns:
//     c[i, j] = init[j] + sum over segments, steps of dot(word of a at row i, word of b at column j)      modulo 2^32
// A matrix product is one segment; a convolution has one for each tap; its weight gradient one for each row of pixels.
// What is not here: which tiles there are (gemm.cc, conv_*.cc) and how a reduction is cut (gemm_plan.h).
#pragma once

#include "subbyte.h"

namespace sb {

// Bytes are kept at an offset where their codes ask for it: code = u8 - 128, or code = s8 + 128. Where sums of pairs
// have to stay in 16 bits, a signed operand is only moved up by what makes it unsigned.
constexpr i32 kOffset = 128;
constexpr i64 kInt16Limit = (1 << 15) - 1;

constexpr i64 kLine = 64;  // bytes that memory moves at a time

constexpr int kMaxRows = 16;    // MR of the tallest tile
constexpr int kMaxVectors = 2;  // NR of the widest tile, in vectors
constexpr int kMaxLanes = 16;   // W of the widest vector

// How a tile's sums become floats as they are stored: float32(sum) * (row_scale[i] * col_scale[j]), then + bias[j].
struct Epilogue {
    const float* row_scale;  // or null
    const float* col_scale;  // padded to whole vectors, as are bias and amax; null: the sums, as they are
    const float* bias;       // or null
    i32* amax;               // amax[j] = max(amax[j], bits of |out[i, j]|); or null
    i64 cols;                // that are stored
    bool half;               // as bfloat16; amax is of floats before they are rounded
};

struct Tile {
    i32* c;  // row i at c + (i / 4) * c_group + (i % 4) * c_row: rows of pixels that are 4 wide need no more
    i64 c_row, c_group;
    const i32* init;  // one for each column
    bool accumulate;  // also add what c holds
    const u8* a;      // word (row i, step k) at a + a_off[segment] + (i / 4) * a_group + (i % 4) * a_row + k * a_step,
    i64 a_row, a_group, a_step;  // in bytes: a word may start at any element
    const i32* b;                // vector (step k, column j) at b + b_off[segment] + k * b_step + j, in words
    i64 b_step;
    const i64* a_off;
    const i64* b_off;
    i64 segments, steps;
    i64 exact;  // steps whose sums of pairs stay in 16 bits, where few_bits: 2 or more
    const Epilogue* epilogue;  // c takes floats (or bfloat16), of as many columns as this says; null: c takes the sums
    bool stream;               // c goes past the caches, where a vector is a line: whole, aligned vectors alone
};
using TileFn = void (*)(const Tile&);

// An operand as a packing pass reads it: element (j, k) is data[j * outer + k * inner], k reduced.
struct Codes {
    const u8* data;
    i64 outer, inner;
    i64 first, last;  // the k that exist; any other is code 0, and its address is never read
    bool is_signed;
    u8 offset;         // added to each byte, modulo 256
    const u8* factor;  // 2^shift for each position of the reduction, or null
    const i32* order;  // position -> k, or -1 for code 0; null for the identity

    // What is left from row or column j and this position of the reduction on.
    Codes part(i64 j, i64 position) const {
        Codes c = *this;
        c.data += j * outer + (order ? 0 : position * inner);
        if (order)
            c.order += position;
        else
            c.first -= position, c.last -= position;
        if (factor) c.factor += position;
        return c;
    }
};

// The same for sums that lie in memory.
struct Finish {
    const void* acc;  // int32, or int64 when wide; rows are acc_row apart and padded to whole vectors
    bool wide;
    i64 acc_row, rows;
    Epilogue epilogue;
    void* out;             // floats, or sums of acc's type where there is no scale
    i64 out_row, out_col;  // one of them is 1; in elements
    i64 cols() const { return epilogue.cols; }
};

// Where columns of words go: `width` of them, a multiple of W, in each panel, the panels `step` words apart; in a panel
// the words of a position lie together, those of the next one ld further.
struct Panels {
    i32* data;
    i64 ld;
    i64 width = i64{1} << 62;  // one panel
    i64 step = 0;
    i32* first_word(i64 column) const { return data + column / width * step + column % width; }
};

struct ProductKernels {
    int rows[kMaxVectors];               // MR of the tile that is 1 vector wide, and of the one that is 2 wide
    int lanes;                           // W
    int per_word;                        // reduced elements in a word
    bool left_is_s8;                     // bytes of the left operand are s8, as those of the right one always are
    bool few_bits;                       // pairs of products are summed in 16 bits: for codes small enough (gemm_plan.h)
    TileFn tile[kMaxVectors][kMaxRows];  // [vectors - 1][rows - 1]
    // words [j][position / per_word], rows of words ld apart
    void (*encode_rows)(const Codes&, i64 n, i64 words, void* dst, i64 ld);
    // words [position / per_word][j]; columns up to a multiple of W may be written
    void (*encode_columns)(const Codes&, i64 n, i64 words, const Panels& to);
    // acc = ((first ? 0 : acc) + tile) << shift for n sums: Horner's step
    void (*combine)(void* acc, bool wide, const i32* tile, i64 n, bool first, int shift);
    void (*finish)(const Finish&);
    // acc[j] += w * x[j * step];  and  sum of g[j] * x[j * step]: what depthwise convolutions are made of
    void (*axpy)(i32* acc, const i32* x, i64 step, i32 w, i64 n);
    i64 (*dot)(const i32* g, const i32* x, i64 step, i64 n);
    // Winograd's transforms of one tile: 16 pixels of codes, frequencies `step` apart; and the sums of 16 frequencies
    // to 4 pixels of the output (null: outside of it; past the caches as Tile::stream). channels: a multiple of W. See
    // conv_winograd.cc.
    void (*winograd_input)(const u8* const* pixels, i64 channels, const u8* factor, u8 offset, u8* to, i64 step);
    void (*winograd_output)(const i32* sums, i64 step, int vectors, int shift, const Epilogue&, bool past_caches,
                            void* const* out);
    bool bytes() const { return per_word == 4; }
    bool streams() const { return SB_X86 && 4 * lanes == kLine; }  // does a tile that is told to?
};
// The ops that a table makes: products; convolutions by Winograd, of bytes only; depthwise ones, in words; few bits.
inline constexpr const char* kProductOps[] = {"gemm", "conv2d", "conv2d_grad_input", "conv2d_grad_weight"};
inline constexpr const char* kWinogradOps[] = {"conv2d_winograd", "conv2d_winograd_grad_input"};
inline constexpr const char* kPlaneOps[] = {"conv2d_planes", "conv2d_planes_grad_input", "conv2d_planes_grad_weight"};
inline constexpr const char* kFewBitsOps[] = {
    "gemm_few_bits", "conv2d_few_bits", "conv2d_few_bits_grad_input", "conv2d_few_bits_grad_weight"};

}  // namespace sb
