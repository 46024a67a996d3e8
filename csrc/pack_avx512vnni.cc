// pack and unpack of 1, 2, 4 and 6 bits, 64 codes at a time; other widths and what is left over by words, with BMI2.
//
// Four codes of b bits are 4 b bits, which these widths let begin at a byte: a 32-bit lane takes those of its 4 bytes.
#include "cpu_features.h"
#include "pack.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {

template <int kBits>
SB_INLINE u64 squeeze(u64 word) { return _pext_u64(word, in_each_byte(low_bits(kBits))); }

template <int kBits>
SB_INLINE u64 spread(u64 dense) { return _pdep_u64(dense, in_each_byte(low_bits(kBits))); }

namespace by_words {
#include "pack.inc"
}

constexpr i64 kCodes = 64;  // in a vector

SB_INLINE __m512i bytes(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
SB_INLINE __m512i each_part(__m128i v) { return _mm512_broadcast_i32x4(v); }

// Codes -> 4 b bits in each 32-bit lane.
template <int kBits>
SB_INLINE __m512i four_codes(__m512i codes) {
    const __m512i low = _mm512_and_si512(codes, bytes(low_bits(kBits)));
    const __m512i pairs = _mm512_maddubs_epi16(low, _mm512_set1_epi16(1 | 1 << (8 + kBits)));
    return _mm512_madd_epi16(pairs, _mm512_set1_epi32(1 | 1 << (16 + 2 * kBits)));
}

template <int kBits>
SB_INLINE void pack_vector(const u8* codes, u8* packed) {
    const __m512i v = _mm512_loadu_si512(codes);
    if constexpr (kBits == 1) {
        const u64 mask = _mm512_test_epi8_mask(v, bytes(1));
        __builtin_memcpy(packed, &mask, sizeof mask);
    } else if constexpr (kBits == 2) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(packed), _mm512_cvtepi32_epi8(four_codes<2>(v)));
    } else if constexpr (kBits == 4) {
        const __m512i low = _mm512_and_si512(v, bytes(15));
        const __m512i pairs = _mm512_maddubs_epi16(low, _mm512_set1_epi16(1 | 16 << 8));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed), _mm512_cvtepi16_epi8(pairs));
    } else {
        const __m128i three = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
        const __m512i parts = _mm512_shuffle_epi8(four_codes<6>(v), each_part(three));  // 12 bytes in each
        const __m512i order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
        const __m512i dense = _mm512_permutexvar_epi32(order, parts);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed), _mm512_castsi512_si256(dense));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + 32), _mm512_extracti32x4_epi32(dense, 2));
    }
}

// 4 b bits in each 32-bit lane -> codes: byte i has the bits from b i on, which come from 8 - b bits below.
template <int kBits>
SB_INLINE __m512i four_bytes(__m512i dense) {
    constexpr int apart = 8 - kBits, mask = static_cast<int>(low_bits(kBits));
    constexpr int or_and = 0xF8;  // a | (b & c)
    __m512i v = _mm512_and_si512(dense, _mm512_set1_epi32(mask));
    v = _mm512_ternarylogic_epi32(v, _mm512_slli_epi32(dense, apart), _mm512_set1_epi32(mask << 8), or_and);
    v = _mm512_ternarylogic_epi32(v, _mm512_slli_epi32(dense, 2 * apart), _mm512_set1_epi32(mask << 16), or_and);
    return _mm512_ternarylogic_epi32(v, _mm512_slli_epi32(dense, 3 * apart), _mm512_set1_epi32(mask << 24), or_and);
}

template <int kBits>
SB_INLINE __m512i load_dense(const u8* packed) {
    if constexpr (kBits == 2)
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
    else if constexpr (kBits == 4)
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed)));
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
    const __m512i parts = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8((u64{1} << 48) - 1, packed));
    return _mm512_shuffle_epi8(
        parts, each_part(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1)));
}

template <int kBits>
SB_INLINE void unpack_vector(const u8* packed, bool is_signed, u8* codes) {
    __m512i v;
    if constexpr (kBits == 1) {
        u64 mask;
        __builtin_memcpy(&mask, packed, sizeof mask);
        v = _mm512_maskz_mov_epi8(mask, bytes(is_signed ? -1 : 1));
    } else {
        v = four_bytes<kBits>(load_dense<kBits>(packed));
        const __m512i sign = bytes(is_signed ? 1 << (kBits - 1) : 0);
        v = _mm512_sub_epi8(_mm512_xor_si512(v, sign), sign);
    }
    _mm512_storeu_si512(codes, v);
}

template <int kBits>
SB_INLINE void pack_bits(const u8* codes, i64 groups, u8* packed) {
    for (; groups >= kCodes / 8; groups -= kCodes / 8, codes += kCodes, packed += kCodes / 8 * kBits)
        pack_vector<kBits>(codes, packed);
    by_words::pack(codes, groups, kBits, packed);
}

template <int kBits>
SB_INLINE void unpack_bits(const u8* packed, i64 groups, bool is_signed, u8* codes) {
    for (; groups >= kCodes / 8; groups -= kCodes / 8, codes += kCodes, packed += kCodes / 8 * kBits)
        unpack_vector<kBits>(packed, is_signed, codes);
    by_words::unpack(packed, groups, kBits, is_signed, codes);
}

static void pack(const u8* codes, i64 groups, int bits, u8* packed) {
    switch (bits) {
        case 1: return pack_bits<1>(codes, groups, packed);
        case 2: return pack_bits<2>(codes, groups, packed);
        case 4: return pack_bits<4>(codes, groups, packed);
        case 6: return pack_bits<6>(codes, groups, packed);
        default: return by_words::pack(codes, groups, bits, packed);
    }
}

static void unpack(const u8* packed, i64 groups, int bits, bool is_signed, u8* codes) {
    switch (bits) {
        case 1: return unpack_bits<1>(packed, groups, is_signed, codes);
        case 2: return unpack_bits<2>(packed, groups, is_signed, codes);
        case 4: return unpack_bits<4>(packed, groups, is_signed, codes);
        case 6: return unpack_bits<6>(packed, groups, is_signed, codes);
        default: return by_words::unpack(packed, groups, bits, is_signed, codes);
    }
}

}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const PackKernels kernels{pack, unpack};
static const Register registered{kPackOps, Isa::avx512vnni, "", &kernels};
}  // namespace sb::avx512vnni
#endif
