/* Template: vectors of LANES 32-bit words, for the instruction set that TARGET names.
 *
 * A kernel's source defines NAME, TARGET and LANES (4, 8 or 16) and includes a template that includes this one.
 * GCC's vector extensions make one source serve SSE2, AVX2, AVX-512 and NEON.
 */
#include <stdint.h>
#include <string.h>

#include "scrypt.h"
#ifdef __aarch64__
#include <arm_neon.h>
#endif

#define N 1024
#ifndef NARROW
#define NARROW NULL, 0
#endif

#define FUNCTION static __attribute__((noinline, TARGET))
#define INLINE static inline __attribute__((always_inline, TARGET))
#define UNROLL _Pragma("GCC unroll 32")
#define KEEP_LOOP _Pragma("GCC unroll 1")

/* may alias: the same words are read one by one elsewhere */
typedef uint32_t vec __attribute__((vector_size(4 * LANES), may_alias));

INLINE vec load(const void *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(void *to, vec v) { memcpy(to, &v, sizeof v); }

#define ROTL_WORD(x, n) ((x) << (n) | (x) >> (32 - (n)))
#ifdef __aarch64__
/* shift and insert: one instruction less than two shifts and an or */
#define ROTL(x, n) ((vec)vsriq_n_u32(vshlq_n_u32((uint32x4_t)(x), n), (uint32x4_t)(x), 32 - (n)))
#else
#define ROTL(x, n) ROTL_WORD(x, n)
#endif
#define SWAP_BYTES(x) ((ROTL(x, 8) & 0x00ff00ff) | (ROTL(x, 24) & 0xff00ff00))

/* Shuffle two vectors alike in each 128-bit piece: 0..3 are words of a, 4..7 words of b. */
#define WORD_AT(piece, i) ((i) < 4 ? (i) + 4 * (piece) : (i) - 4 + LANES + 4 * (piece))
#define PIECE(piece, i, j, k, l) WORD_AT(piece, i), WORD_AT(piece, j), WORD_AT(piece, k), WORD_AT(piece, l)
#if LANES == 4
#define PIECES(...) PIECE(0, __VA_ARGS__)
#elif LANES == 8
#define PIECES(...) PIECE(0, __VA_ARGS__), PIECE(1, __VA_ARGS__)
#else
#define PIECES(...) PIECE(0, __VA_ARGS__), PIECE(1, __VA_ARGS__), PIECE(2, __VA_ARGS__), PIECE(3, __VA_ARGS__)
#endif
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, PIECES(__VA_ARGS__))

/* Halves (LANES 8) or every other 128-bit piece (LANES 16) of two vectors. */
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)

#define GLUE_(a, b) a##b
#define GLUE(a, b) GLUE_(a, b)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
