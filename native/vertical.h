/* Template: LANES hashes side by side, lane l of every vector belonging to hash l; SETS of them take turns.
 *
 * While one set computes, the rows that another one needs next are on their way. A row of the scratchpad holds the
 * 128 bytes of each lane one after another, so a lane's read touches two cache lines; storing and loading transpose.
 * With SCALAR 1, one more hash of each set runs in the integer unit, interleaved with the vectors.
 */
#include "pbkdf2.h"

#define EACH_SET (LANES + SCALAR)
#define ROW_WORDS (32 * EACH_SET)
#define SET_WORDS ((size_t)N * ROW_WORDS)

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
#include "avx2_block_mix.h"
#else
/* One step of four quarter rounds that do not depend on each other; the scalar hash's follows each vector's. */
#if SCALAR
/* NEON only; held in this order: the compiler's own mixes vector and integer instructions less well */
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

typedef struct {
    vec x[32];
    uint32_t z[32]; /* the scalar hash's */
} block;

FUNCTION void block_mix(block *b) {
    xor_salsa8(b->x, b->x + 16, b->z, b->z + 16);
    xor_salsa8(b->x + 16, b->x, b->z + 16, b->z);
}

INLINE uint32_t scalar_word_16(const block *b) { return b->z[16]; }
INLINE void settle(block *b) { (void)b; }
#endif

INLINE void put_rows(uint32_t *row, const block *b) {
    UNROLL for (int k = 0; k < 32; k += LANES) {
        vec t[LANES];
        UNROLL for (int i = 0; i < LANES; i++) t[i] = b->x[k + i];
        transpose(t);
        UNROLL for (int i = 0; i < LANES; i++) store(row + 32 * i + k, t[i]);
        if (SCALAR) store(row + 32 * LANES + k, load(b->z + k));
    }
}

/* Look up which row each hash needs, and ask for it. */
INLINE void find_rows(const uint32_t *rows[EACH_SET], const uint32_t *v, const block *b) {
    const uint32_t *word = (const uint32_t *)&b->x[16];
    UNROLL for (int i = 0; i < EACH_SET; i++) {
        size_t at = (i < LANES ? word[i] : scalar_word_16(b)) & (N - 1);
        rows[i] = v + at * ROW_WORDS + 32 * i;
        __builtin_prefetch(rows[i]);
        __builtin_prefetch(rows[i] + 16);
    }
}

INLINE void xor_rows(block *b, const uint32_t *const rows[EACH_SET]) {
    UNROLL for (int k = 0; k < 32; k += LANES) {
        vec t[LANES];
        UNROLL for (int i = 0; i < LANES; i++) t[i] = load(rows[i] + k);
        transpose(t);
        UNROLL for (int i = 0; i < LANES; i++) b->x[k + i] ^= t[i];
        if (SCALAR) store(b->z + k, load(b->z + k) ^ load(rows[EACH_SET - 1] + k));
    }
}

/* `sets` of the SETS are there. */
FUNCTION void ro_mix(block b[SETS], uint32_t *v, int sets) {
    const uint32_t *rows[SETS][EACH_SET];
    for (size_t i = 0; i < N; i++) {
        for (int s = 0; s < sets; s++) {
            if (SCALAR && i > 0) settle(&b[s]);
            put_rows(v + s * SET_WORDS + i * ROW_WORDS, &b[s]);
            block_mix(&b[s]);
        }
    }
    for (int s = 0; s < sets; s++) find_rows(rows[s], v + s * SET_WORDS, &b[s]);
    for (int i = 0; i < N; i++) {
        for (int s = 0; s < sets; s++) {
            if (SCALAR) settle(&b[s]);
            xor_rows(&b[s], rows[s]);
            block_mix(&b[s]);
            find_rows(rows[s], v + s * SET_WORDS, &b[s]);
        }
    }
    for (int s = 0; SCALAR && s < sets; s++) settle(&b[s]);
}

/* Up to SETS * EACH_SET hashes. The ends of the scalar ones are computed as one more vector, a lane for each set. */
FUNCTION void hash(void *scratch, const uint8_t *headers, size_t count, uint8_t *digests) {
    block b[SETS];
    hmac_key keys[SETS], scalar_keys;
    uint8_t scalar_headers[SETS * MG_HEADER_BYTES] = {0}, scalar_digests[SETS * MG_HASH_BYTES];
    vec scalars[32];
    int sets = 0;
    for (size_t done = 0; done < count; done += EACH_SET, sets++) {
        const uint8_t *from = headers + MG_HEADER_BYTES * done;
        size_t some = count - done;
        pbkdf2_start(&keys[sets], b[sets].x, from, some);
        /* where the set is not full, a repetition */
        const uint8_t *scalar = from + (some > LANES ? MG_HEADER_BYTES * LANES : 0);
        memcpy(scalar_headers + MG_HEADER_BYTES * sets, scalar, MG_HEADER_BYTES);
    }
    if (SCALAR) pbkdf2_start(&scalar_keys, scalars, scalar_headers, sets);
    for (int s = 0; SCALAR && s < sets; s++) {
        for (int k = 0; k < 32; k++) b[s].z[k] = scalars[k][s];
    }
    ro_mix(b, scratch, sets);
    for (int s = 0; SCALAR && s < sets; s++) {
        for (int k = 0; k < 32; k++) scalars[k][s] = b[s].z[k];
    }
    if (SCALAR) pbkdf2_finish(&scalar_keys, scalars, scalar_digests, sets);
    for (int s = 0; s < sets; s++) {
        size_t done = (size_t)s * EACH_SET, some = count - done;
        uint8_t *to = digests + MG_HASH_BYTES * done;
        pbkdf2_finish(&keys[s], b[s].x, to, some);
        if (SCALAR && some > LANES) memcpy(to + MG_HASH_BYTES * LANES, scalar_digests + MG_HASH_BYTES * s, MG_HASH_BYTES);
    }
}

const mg_kernel GLUE(mg_, NAME) = {
    TEXT(NAME), 4 * SETS * SET_WORDS, SETS * EACH_SET, hash, NARROW, EACH_SET};
