/* Template: LANES hashes side by side, lane l of every vector belonging to hash l; SETS of them take turns.
 *
 * While one set computes, the rows that another one needs next are on their way. A row of the scratchpad holds the
 * 128 bytes of each lane one after another, so a lane's read touches two cache lines; storing and loading transpose.
 * With SCALAR, one more hash runs in the integer unit, interleaved with the vectors (out-of-order ARM cores).
 */
#include "pbkdf2.h"
#ifdef SCALAR
#include "portable.h"
#else
#define SCALAR 0
#endif

#define ROW_WORDS (32 * LANES)
#define SET_WORDS ((size_t)N * ROW_WORDS)
#define TOTAL (SETS * LANES + SCALAR)

/* Transpose a square of LANES x LANES words. */
INLINE void transpose(vec t[LANES]) {
    UNROLL for (int b = 0; b < LANES; b += 4) {
        vec s0 = SHUFFLE(t[b], t[b + 1], 0, 4, 1, 5), s1 = SHUFFLE(t[b], t[b + 1], 2, 6, 3, 7);
        vec s2 = SHUFFLE(t[b + 2], t[b + 3], 0, 4, 1, 5), s3 = SHUFFLE(t[b + 2], t[b + 3], 2, 6, 3, 7);
        t[b] = SHUFFLE(s0, s2, 0, 1, 4, 5), t[b + 1] = SHUFFLE(s0, s2, 2, 3, 6, 7);
        t[b + 2] = SHUFFLE(s1, s3, 0, 1, 4, 5), t[b + 3] = SHUFFLE(s1, s3, 2, 3, 6, 7);
    }
#if LANES == 8
    UNROLL for (int r = 0; r < 4; r++) {
        vec a = t[r], b = t[r + 4];
        t[r] = LOW(a, b), t[r + 4] = HIGH(a, b);
    }
#elif LANES == 16
    UNROLL for (int r = 0; r < 4; r++) {
        vec a = EVEN(t[r], t[r + 4]), b = ODD(t[r], t[r + 4]);
        vec c = EVEN(t[r + 8], t[r + 12]), d = ODD(t[r + 8], t[r + 12]);
        t[r] = EVEN(a, c), t[r + 4] = EVEN(b, d), t[r + 8] = ODD(a, c), t[r + 12] = ODD(b, d);
    }
#endif
}

#if LANES == 8
#include "avx2_rounds.h"
#else
/* One step of four quarter rounds that do not depend on each other; the scalar hash's follows each vector's. */
#if SCALAR
/* held in this order: the compiler's own mixes vector and integer instructions less well */
INLINE vec hold(vec v) {
    __asm__ volatile("" : "+w"(v));
    return v;
}
#define ONE(p, q, r, n) x[p] ^= hold(ROTL(x[q] + x[r], n)), z[p] ^= ROTL_WORD(z[q] + z[r], n)
#else
#define ONE(p, q, r, n) x[p] ^= ROTL(x[q] + x[r], n)
#endif
#define COLUMNS                                                                                                        \
    ONE(4, 0, 12, 7), ONE(9, 5, 1, 7), ONE(14, 10, 6, 7), ONE(3, 15, 11, 7);                                           \
    ONE(8, 4, 0, 9), ONE(13, 9, 5, 9), ONE(2, 14, 10, 9), ONE(7, 3, 15, 9);                                            \
    ONE(12, 8, 4, 13), ONE(1, 13, 9, 13), ONE(6, 2, 14, 13), ONE(11, 7, 3, 13);                                        \
    ONE(0, 12, 8, 18), ONE(5, 1, 13, 18), ONE(10, 6, 2, 18), ONE(15, 11, 7, 18)
#define ROWS                                                                                                           \
    ONE(1, 0, 3, 7), ONE(6, 5, 4, 7), ONE(11, 10, 9, 7), ONE(12, 15, 14, 7);                                           \
    ONE(2, 1, 0, 9), ONE(7, 6, 5, 9), ONE(8, 11, 10, 9), ONE(13, 12, 15, 9);                                           \
    ONE(3, 2, 1, 13), ONE(4, 7, 6, 13), ONE(9, 8, 11, 13), ONE(14, 13, 12, 13);                                        \
    ONE(0, 3, 2, 18), ONE(5, 4, 7, 18), ONE(10, 9, 8, 18), ONE(15, 14, 13, 18)

/* b ^= bx; b = salsa20/8(b); with SCALAR the same for c and cx. */
INLINE void xor_salsa8(vec b[16], const vec bx[16], uint32_t *c, const uint32_t *cx) {
    vec x[16];
    uint32_t z[16];
    UNROLL for (int k = 0; k < 16; k++) b[k] = x[k] = b[k] ^ bx[k];
    UNROLL for (int k = 0; SCALAR && k < 16; k++) c[k] = z[k] = c[k] ^ cx[k];
    (void)z;
    KEEP_LOOP for (int round = 0; round < 8; round += 2) {
        COLUMNS;
        ROWS;
    }
    UNROLL for (int k = 0; k < 16; k++) b[k] += x[k];
    UNROLL for (int k = 0; SCALAR && k < 16; k++) c[k] += z[k];
}
#endif

FUNCTION void block_mix(vec x[32], uint32_t *z) {
    xor_salsa8(x, x + 16, z, SCALAR ? z + 16 : z);
    xor_salsa8(x + 16, x, SCALAR ? z + 16 : z, z);
}

INLINE void put_rows(uint32_t *row, const vec x[32]) {
    UNROLL for (int k = 0; k < 32; k += LANES) {
        vec t[LANES];
        UNROLL for (int i = 0; i < LANES; i++) t[i] = x[k + i];
        transpose(t);
        UNROLL for (int i = 0; i < LANES; i++) store(row + 32 * i + k, t[i]);
    }
}

/* Look up which row each lane needs, and ask for it. */
INLINE void find_rows(const uint32_t *rows[LANES], const uint32_t *v, const vec x[32]) {
    uint32_t at[LANES];
    store(at, (x[16] & (N - 1)) * ROW_WORDS);
    UNROLL for (int i = 0; i < LANES; i++) {
        rows[i] = v + at[i] + 32 * i;
        __builtin_prefetch(rows[i]);
        __builtin_prefetch(rows[i] + 16);
    }
}

INLINE void xor_rows(vec x[32], const uint32_t *const rows[LANES]) {
    UNROLL for (int k = 0; k < 32; k += LANES) {
        vec t[LANES];
        UNROLL for (int i = 0; i < LANES; i++) t[i] = load(rows[i] + k);
        transpose(t);
        UNROLL for (int i = 0; i < LANES; i++) x[k + i] ^= t[i];
    }
}

/* `sets` of the SETS are there; z and w are the scalar hash's block and scratchpad. */
FUNCTION void ro_mix(vec x[SETS][32], uint32_t *v, int sets, uint32_t *z, uint32_t *w) {
    const uint32_t *rows[SETS][LANES];
    for (size_t i = 0; i < N; i++) {
        if (SCALAR) memcpy(w + 32 * i, z, 128);
        for (int s = 0; s < sets; s++) {
            put_rows(v + s * SET_WORDS + i * ROW_WORDS, x[s]);
            block_mix(x[s], z);
        }
    }
    for (int s = 0; s < sets; s++) find_rows(rows[s], v + s * SET_WORDS, x[s]);
    for (int i = 0; i < N; i++) {
        const uint32_t *row = SCALAR ? w + 32 * (z[16] & (N - 1)) : NULL;
        UNROLL for (int k = 0; SCALAR && k < 32; k++) z[k] ^= row[k];
        for (int s = 0; s < sets; s++) {
            xor_rows(x[s], rows[s]);
            block_mix(x[s], z);
            find_rows(rows[s], v + s * SET_WORDS, x[s]);
        }
    }
}

/* Up to TOTAL hashes. */
FUNCTION void hash(void *scratch, const uint8_t *headers, size_t count, uint8_t *digests) {
    vec x[SETS][32];
    hmac_key keys[SETS];
    uint32_t *v = scratch;
    uint32_t *z = NULL, *w = NULL;
    int sets = 0;
#if SCALAR
    uint32_t block[32];
    mg_hmac_key key;
    const uint8_t *scalar = headers + MG_HEADER_BYTES * (count - 1); /* the last one, also when lanes stay empty */
    z = block, w = v + SETS * SET_WORDS;
    mg_pbkdf2_start(&key, z, scalar);
#endif
    size_t vectors = count > SCALAR ? count - SCALAR : count;
    for (size_t done = 0; done < vectors; done += LANES, sets++) {
        pbkdf2_start(&keys[sets], x[sets], headers + MG_HEADER_BYTES * done, vectors - done);
    }
    ro_mix(x, v, sets, z, w);
    for (int s = 0; s < sets; s++) {
        size_t done = (size_t)s * LANES;
        pbkdf2_finish(&keys[s], x[s], digests + MG_HASH_BYTES * done, vectors - done);
    }
#if SCALAR
    mg_pbkdf2_finish(&key, z, digests + MG_HASH_BYTES * (count - 1));
#endif
}

const mg_kernel GLUE(mg_, NAME) = {TEXT(NAME), 4 * (SETS * SET_WORDS + SCALAR * 32 * N), TOTAL, hash, NARROW, LANES};
