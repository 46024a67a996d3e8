// How a reduction over codes with shifts is cut so that int32 sums are exact: fold, Horner, chunks (ops/shiftmm.py).
//
// A left shift goes onto the left operand's spare bits, then onto the right one's, for nothing in the packing pass.
// What remains orders the reduction, largest first, and shifts the sums at each boundary. Where the whole sum may
// leave int32 (`wide`), chunks that cannot are added in int64; elsewhere int32 modulo 2^32 is exact as it is.
#pragma once

#include <vector>

#include "cpu_features.h"
#include "gemm_kernels.h"
#include "memory.h"

namespace sb {

// One operand's numbers, as the Python wrappers pass them.
struct Format {
    i64 bits, is_signed;
    i32 qmax() const { return is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1; }
    int room() const { return static_cast<int>(8 - bits); }
};

struct Chunk {
    i64 word, words;        // of the reduction
    i64 segment, segments;  // taps of a convolution
    int shift;              // of the sums, after this chunk is in them
};

class Reduction {
public:
    // k elements whose left shifts are left[0..k), or none
    Reduction(const ProductKernels& kernels, i64 k, const std::vector<int>& left, Format a, Format b, bool wide);

    // The cuts for a sum over `segments` taps of all words. One chunk without a shift unless the plan asks for more.
    std::vector<Chunk> chunks(i64 segments) const;
    bool wide() const { return wide_; }
    i64 words() const { return words_; }

    // Fills in what is the plan's: encoding, factors, order, and that all k exist.
    Codes left_codes(const void* data, i64 outer, i64 inner) const { return codes(a_, factor_a_, data, outer, inner); }
    Codes right_codes(const void* data, i64 outer, i64 inner) const { return codes(b_, factor_b_, data, outer, inner); }
    i32 left_offset() const { return a_.offset; }
    i32 right_offset() const { return b_.offset; }
    i64 longest_exact() const { return longest_; }  // products that int32 holds, whatever the codes
    i64 exact() const { return exact_; }            // Tile::exact

private:
    struct Side {
        bool is_signed;
        i32 offset;  // what the encoded bytes are away from the codes: code = byte - offset
    };
    struct Group {
        i64 word, words;
        int rest;
    };
    static Side side(const ProductKernels& kernels, bool wants_s8, Format codes, int folded);
    Codes codes(const Side& side, const Lines<u8>& factor, const void* data, i64 outer, i64 inner) const;

    i64 k_, words_ = 0;
    int per_word_;
    bool wide_;
    Side a_, b_;
    i64 longest_, exact_;
    Lines<u8> factor_a_, factor_b_;
    std::vector<i32> order_;
    std::vector<Group> groups_;
};

// The kernels of one product in the table: of any codes, and of few bits.
struct ProductOps {
    ProductOps(const char* any, const char* few_bits) : any(any), few_bits(few_bits) {}
    Op<ProductKernels> any, few_bits;
};

// Those of few bits where the others cannot multiply bytes, and these formats, shifted by up to `shift`, leave sums of
// pairs enough room in 16 bits: never by the codes themselves.
Op<ProductKernels>::Best best_products(ProductOps& ops, Format a, Format b, i64 shift);

// (E_a - e_a[k]) + (E_b - e_b[k]) for each k; an operand without exponents (null) adds 0.
std::vector<int> left_shifts(i64 k, const u8* ea, int max_a, const u8* eb, int max_b);

// What turns sums of encoded words into sums of codes: for each chunk, word sums + init[column] + rows[row].
struct Correction {
    Correction(const ProductKernels& kernels, const Reduction& reduction);
    // init for `columns` (whole vectors) of b, whose tile is as `t` says
    void columns(Tile t, i64 columns, i32* init) const;
    // rows[i], all that depends on a row of a; only where has_rows()
    void rows(Tile t, int rows, i32* sums) const;
    bool has_rows() const { return right_ != 0; }

private:
    const ProductKernels& kernels_;
    i32 left_, right_;
};

// Memory that a thread keeps from call to call: mapping fresh pages costs more than the product of small matrices.
// `slot` tells buffers apart that live at the same time. Uninitialised, 64-byte aligned, 64 spare bytes at the end.
enum class Slot { left, right, sums, extra, init, scale, count };
void* scratch(Slot slot, size_t bytes);
template <class T>
T* scratch(Slot slot, i64 n) {
    return static_cast<T*>(scratch(slot, static_cast<size_t>(n) * sizeof(T)));
}

// Splits n into equal parts of at most `most`: the size of a part.
inline i64 balanced(i64 n, i64 most) { return n <= 0 ? 1 : ceil_div(n, ceil_div(n, most)); }

// One tile over all chunks: acc (int32, int64 when wide) = the sums of codes. b's panel holds all words of a segment
// before those of the next. `t` has a, b, their strides and the segments of the whole reduction; its c_row and c_group
// are acc's. From chunk to chunk init lies init_ld and row_sums (null: no correction of rows) kMaxRows further.
void run_chunks(const ProductKernels& k, const std::vector<Chunk>& chunks, bool wide, Tile t, int rows, int vectors,
                void* acc, const i32* init, i64 init_ld, const i32* row_sums);

// Are the sums complete after one run of a tile, so that its epilogue may finish them?
inline bool in_one_run(const std::vector<Chunk>& chunks, bool wide, const Correction& correct) {
    return chunks.size() == 1 && !wide && chunks[0].shift == 0 && !correct.has_rows();
}

// The part of `t` that one chunk takes.
Tile chunk_tile(Tile t, const Chunk& chunk);

}  // namespace sb
