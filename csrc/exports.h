// Exported functions that others are made of; what each does is said where it is defined. half: a tensor of floats is
// bfloat16, not float32.
#pragma once

#include "subbyte.h"

SB_EXPORT const char* sb_amax(
    const void* x, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, float* r, int threads);
SB_EXPORT const char* sb_quantize(
    const void* x, int half, sb::i64 n, const float* r, sb::i64 r_channels, sb::i64 r_inner, const sb::u8* shift,
    sb::i64 shift_channels, sb::i64 shift_inner, const sb::i64* stream, sb::i64 batch, sb::i64 channels, sb::i64 pixels,
    int low, int high, void* codes, int threads);
SB_EXPORT const char* sb_unpack_codes(
    const sb::u8* packed, sb::i64 n, int bits, int is_signed, sb::u8* codes, int threads);
SB_EXPORT const char* sb_norm_stats(
    const sb::u8* q, int is_signed, sb::i64 outer, sb::i64 channels, sb::i64 inner, int l2, sb::i64* total,
    sb::i64* spread, sb::i64* low, sb::i64* high, int threads);
SB_EXPORT const char* sb_norm_stats_uncentred(
    const sb::u8* q, int is_signed, sb::i64 outer, sb::i64 channels, sb::i64 inner, int l2, sb::i64* spread,
    sb::i64* most, int threads);
SB_EXPORT const char* sb_norm_constants(
    const float* s, sb::i64 s_channels, const sb::i64* total, const sb::i64* spread, const sb::i64* least,
    const sb::i64* greatest, sb::i64 channels, sb::i64 scales, sb::i64 n, sb::i64 count, int l2, double eps,
    double l1_factor, int bits, double* mu, double* d, float* factor, float* scale, int);
SB_EXPORT const char* sb_norm_relu(
    const sb::i8* q, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::i64* total, sb::i64 totals,
    const float* factor, sb::i64 factors, const sb::i8* gamma, sb::i64 gammas, const float* scale, sb::i64 scales,
    const float* beta, sb::i64 betas, sb::i64 count, int bits, int saved_bits, const void* other, void* z, int half,
    float* r, sb::u8* saved, sb::u8* masks, int threads);
SB_EXPORT const char* sb_norm_grad_stats(
    const sb::i8* g, const sb::i8* k, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::i8* gamma,
    sb::i64 gamma_channels, sb::i64* sum_h, sb::i64* sum_hk, sb::i64* sum_sign, sb::i64* sum_g, sb::i64* sum_gk,
    int threads);
SB_EXPORT const char* sb_norm_grad_stats_rows(
    const sb::i8* g, const sb::i8* k, sb::i64 rows, sb::i64 columns, const sb::i8* gamma, sb::i64 gamma_channels,
    sb::i64* sum_h, sb::i64* sum_hk, sb::i64* sum_sign, sb::i64* sum_g, sb::i64* sum_gk, int threads);
SB_EXPORT const char* sb_norm_grad_constants(
    const float* s_g, sb::i64 g_channels, const float* s_k, sb::i64 k_channels, const float* s_gamma,
    sb::i64 gamma_channels, const double* d, const sb::i64* sum_h, const sb::i64* sum_hk, const sb::i64* sum_t,
    sb::i64 channels, sb::i64 n, int centred, int l2, double l1_factor, float* a, float* u, float* v, float* t, int);
SB_EXPORT const char* sb_norm_grad_apply(
    const sb::i8* g, const sb::i8* k, sb::i64 n, const sb::i8* gamma, sb::i64 gamma_channels, sb::i64 gamma_inner,
    const float* a, sb::i64 a_channels, sb::i64 a_inner, const float* u, sb::i64 u_channels, sb::i64 u_inner,
    const float* v, sb::i64 v_channels, sb::i64 v_inner, const float* t, sb::i64 t_channels, sb::i64 t_inner, int l2,
    void* dx, int half, int threads);
SB_EXPORT const char* sb_norm_grad_stats_groups(
    const sb::i8* g, const sb::i8* k, sb::i64 samples, sb::i64 channels, sb::i64 inner, sb::i64 group,
    const sb::i8* gamma, sb::i64 gamma_channels, sb::i64* sum_h, sb::i64* sum_hk, sb::i64* sum_sign, sb::i64* sum_g,
    sb::i64* sum_gk, int threads);
SB_EXPORT const char* sb_norm_relu_range(
    const sb::i64* least, const sb::i64* greatest, const sb::i64* total, const float* factor, sb::i64 channels,
    sb::i64 n, int bits, const sb::i8* gamma, sb::i64 gamma_channels, const float* scale, sb::i64 scale_channels,
    const float* beta, sb::i64 beta_channels, int half, float* r, int);
SB_EXPORT const char* sb_norm_grad_range(
    const sb::i64* low, const sb::i64* high, sb::i64 channels, const sb::i8* gamma, sb::i64 gamma_channels,
    const float* a, const float* u, const float* v, const float* t, int half, float* r, int);
SB_EXPORT const char* sb_shift_exponents(
    const float* r_k, sb::i64 channels, int top, int apart, float* r, sb::u8* shift, int);
SB_EXPORT const char* sb_absmax_codes(
    const void* x, int half, sb::i64 n, float clip, const sb::i64* stream, sb::i64 batch, sb::i64 channels,
    sb::i64 pixels, int low, int high, void* codes, float* scale, int threads);
SB_EXPORT const char* sb_shift_codes(
    const void* x, int half, sb::i64 n, sb::i64 groups, sb::i64 inner, int top, float clip, const sb::i64* stream,
    sb::i64 batch, sb::i64 channels, sb::i64 pixels, int low, int high, void* codes, float* scale, sb::u8* shift,
    int threads);
SB_EXPORT const char* sb_quantize_tokens(
    const void* x, int half, sb::i64 rows, sb::i64 channels, const float* r, const sb::i64* stream, sb::i64 order_batch,
    sb::i64 order_channels, sb::i64 order_pixels, int code_bits, int with_sign, int top, sb::i8* codes, int threads);
SB_EXPORT const char* sb_quantize_blocks(
    const void* x, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, sb::i64 block, const float* r,
    int code_bits, int with_sign, int top, sb::i8* codes, int threads);
SB_EXPORT const char* sb_pack_tokens(
    const sb::u8* codes, sb::i64 rows, sb::i64 channels, int bits, int top, sb::u8* packed, sb::u8* places,
    int threads);
SB_EXPORT const char* sb_unpack_tokens(
    const sb::u8* packed, const sb::u8* places, sb::i64 rows, sb::i64 channels, int bits, int with_sign, int top,
    sb::u8* codes, int threads);
SB_EXPORT const char* sb_pack_codes(const sb::u8* codes, sb::i64 n, int bits, sb::u8* packed, int threads);
SB_EXPORT const char* sb_gemm(const void* call, int threads);
SB_EXPORT const char* sb_relu_grad(
    const void* g, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* mask, float* r, void* h,
    int threads);
SB_EXPORT const char* sb_relu_grad_quantize(
    const void* g, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* mask, const float* r,
    sb::i64 ranges, const sb::i64* stream, sb::i64 order_batch, sb::i64 order_channels, sb::i64 order_pixels, int top,
    sb::i8* codes, int threads);
SB_EXPORT const char* sb_norm_grad_sums(
    const sb::i8* g, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* saved, int saved_bits,
    sb::i64* sums, sb::i64* low, sb::i64* high, int threads);
