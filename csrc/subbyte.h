// What every file of the library shares: integer names, the export macro, and the code regions of each ISA.
//
// The library has a C ABI, takes raw pointers, and knows nothing of torch: one build serves every Python and torch.
// A function exported to Python returns the name of the kernel that it ran, or nullptr for a call it does not cover.
// This header is not a place for kernels, and nothing in it depends on an ISA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace sb {
using i8 = int8_t;
using u8 = uint8_t;
using i16 = int16_t;
using u16 = uint16_t;
using i32 = int32_t;
using u32 = uint32_t;
using i64 = int64_t;
using u64 = uint64_t;

static_assert(sizeof(float) == 4 && sizeof(void*) == 8, "float32 and 64-bit pointers are assumed throughout");
static_assert((-1 >> 1) == -1, ">> on signed integers has to be arithmetic, as it is in numerics.py");

// bfloat16: the upper half of a float32.
struct Bf16 {
    u16 bits;
};

constexpr u32 kHalfNan = 0x7FC00000;  // what every NaN becomes

// A tensor of floats, float32 or bfloat16: T is char, or const char where it is read. visit(f): f with its pointer.
template <class T>
struct FloatTensor {
    template <class E>
    using Of = std::conditional_t<std::is_const_v<T>, const E, E>;

    Of<void>* p;
    bool half;

    FloatTensor(Of<float>* p) : p(p), half(false) {}
    FloatTensor(Of<void>* p, bool half) : p(p), half(half) {}
    FloatTensor operator+(i64 n) const { return {static_cast<T*>(p) + n * bytes(), half}; }
    explicit operator bool() const { return p != nullptr; }
    i64 bytes() const { return half ? 2 : 4; }  // of an element

    template <class F>
    void visit(const F& f) const {
        if (half)
            f(static_cast<Of<Bf16>*>(p));
        else
            f(static_cast<Of<float>*>(p));
    }
};
using Floats = FloatTensor<const char>;
using FloatsOut = FloatTensor<char>;

template <class T>
constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }
template <class T>
constexpr T round_up(T a, T b) { return ceil_div(a, b) * b; }
}  // namespace sb

#define SB_EXPORT extern "C" __attribute__((visibility("default")))
#define SB_INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define SB_X86 1
#else
#define SB_X86 0
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
#define SB_ARM 1
#else
#define SB_ARM 0
#endif
// Compilers that know AVX-VNNI, and dotprod in a target region; an older one leaves those kernels out, and the ISA below
// runs.
#if SB_X86 && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define SB_AVXVNNI 1
#else
#define SB_AVXVNNI 0
#endif
#if SB_ARM && (defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__) || __clang_major__ >= 16)
#define SB_NEONDOT 1
#else
#define SB_NEONDOT 0
#endif

// Code between SB_TARGET_BEGIN_<ISA> and SB_TARGET_END may use that ISA; the rest of the library runs on any machine.
// Include the standard library BEFORE a region: its inline functions are shared by all files, so that a copy compiled
// for AVX-512 could be the one which a machine without it executes.
//
// SB_AVXVNNI_BY_EVEX is for tests: the kernels of AVX-VNNI with the same 256-bit instruction in the encoding of
// AVX-512VL, so that a CPU which has only that one can run all of their code but the encoding.
#ifdef SB_AVXVNNI_BY_EVEX
#define SB_AVXVNNI_TARGET "avx2,bmi2,avx512f,avx512vl,avx512vnni"
#else
#define SB_AVXVNNI_TARGET "avx2,bmi2,avxvnni"
#endif
#define SB_REGION(isa) _Pragma(#isa)
#define SB_GCC_TARGET(isa) SB_REGION(GCC target(isa))
#define SB_CLANG_TARGET(isa) SB_REGION(clang attribute push(__attribute__((target(isa))), apply_to = function))
#if SB_X86
#if defined(__clang__)
#define SB_TARGET_BEGIN_AVX2 SB_CLANG_TARGET("avx2,bmi2")
#define SB_TARGET_BEGIN_AVXVNNI SB_CLANG_TARGET(SB_AVXVNNI_TARGET)
#define SB_TARGET_BEGIN_AVX512VNNI SB_CLANG_TARGET("avx2,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define SB_TARGET_END _Pragma("clang attribute pop")
#else
#define SB_TARGET_BEGIN_AVX2 _Pragma("GCC push_options") SB_GCC_TARGET("avx2,bmi2")
#define SB_TARGET_BEGIN_AVXVNNI _Pragma("GCC push_options") SB_GCC_TARGET(SB_AVXVNNI_TARGET)
#define SB_TARGET_BEGIN_AVX512VNNI \
    _Pragma("GCC push_options") \
    SB_GCC_TARGET("avx2,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#define SB_TARGET_END _Pragma("GCC pop_options")
#endif
#elif SB_ARM
#if defined(__clang__)
#define SB_TARGET_BEGIN_NEONDOT SB_CLANG_TARGET("dotprod")
#define SB_TARGET_END _Pragma("clang attribute pop")
#else
#define SB_TARGET_BEGIN_NEONDOT _Pragma("GCC push_options") SB_GCC_TARGET("arch=armv8.2-a+dotprod")
#define SB_TARGET_END _Pragma("GCC pop_options")
#endif
#endif
