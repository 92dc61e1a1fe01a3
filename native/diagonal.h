/* Template: the salsa matrix held by its diagonals, LANES / 4 hashes in a vector, up to GROUPS vectors side by side.
 *
 * Vector k of a half holds, for each of its hashes, diagonal k of the 4 x 4 matrix; a step is then one addition, one
 * rotation and one xor for a whole matrix, and between columns and rows three vectors turn. More groups hide latency.
 * A row of the scratchpad holds the 128 bytes of each hash one after another. With a GAP only every GAP-th row is kept,
 * and the others are computed again from the one before them, for each hash alone (LANES 4 only).
 */
#include "pbkdf2.h"

#define HASHES (LANES / 4)
#define TOTAL (GROUPS * HASHES)
#define CHUNKS ((TOTAL + LANES - 1) / LANES)
#ifndef GAP
#define GAP 1
#endif

typedef struct {
    vec half[2][4][GROUPS];
} block;

/* Word w of vector k is word DIAGONAL[k][w] of the salsa matrix. */
static const uint8_t DIAGONAL[4][4] = {{0, 5, 10, 15}, {4, 9, 14, 3}, {8, 13, 2, 7}, {12, 1, 6, 11}};

#define EACH UNROLL for (int g = 0; g < groups; g++)
#define STEP(y, p, q, n) EACH y[g] ^= ROTL(p[g] + q[g], n)
#define TURN(y, i, j, k, l) EACH y[g] = SHUFFLE(y[g], y[g], i, j, k, l)

/* x ^= y; x = salsa20/8(x) */
INLINE void xor_salsa8(vec x[4][GROUPS], vec y[4][GROUPS], const int groups) {
    vec a[GROUPS], b[GROUPS], c[GROUPS], d[GROUPS];
    EACH x[0][g] = a[g] = x[0][g] ^ y[0][g], x[1][g] = b[g] = x[1][g] ^ y[1][g];
    EACH x[2][g] = c[g] = x[2][g] ^ y[2][g], x[3][g] = d[g] = x[3][g] ^ y[3][g];
    KEEP_LOOP for (int round = 0; round < 8; round += 2) {
        STEP(b, a, d, 7);
        STEP(c, b, a, 9);
        STEP(d, c, b, 13);
        STEP(a, d, c, 18);
        TURN(b, 3, 0, 1, 2);
        TURN(c, 2, 3, 0, 1);
        TURN(d, 1, 2, 3, 0);
        STEP(d, a, b, 7);
        STEP(c, d, a, 9);
        STEP(b, c, d, 13);
        STEP(a, b, c, 18);
        TURN(b, 1, 2, 3, 0);
        TURN(c, 2, 3, 0, 1);
        TURN(d, 3, 0, 1, 2);
    }
    EACH x[0][g] += a[g], x[1][g] += b[g], x[2][g] += c[g], x[3][g] += d[g];
}

INLINE void block_mix(block *x, const int groups) {
    xor_salsa8(x->half[0], x->half[1], groups);
    xor_salsa8(x->half[1], x->half[0], groups);
}

/* Four vectors of HASHES pieces <-> HASHES rows of four pieces. */
INLINE void exchange(vec t[4]) {
#if LANES == 8
    vec a = t[0], b = t[1], c = t[2], d = t[3];
    t[0] = LOW(a, b), t[1] = LOW(c, d), t[2] = HIGH(a, b), t[3] = HIGH(c, d);
#elif LANES == 16
    vec a = EVEN(t[0], t[1]), b = ODD(t[0], t[1]), c = EVEN(t[2], t[3]), d = ODD(t[2], t[3]);
    t[0] = EVEN(a, c), t[1] = EVEN(b, d), t[2] = ODD(a, c), t[3] = ODD(b, d);
#else
    (void)t;
#endif
}

/* The other way round: HASHES rows of four pieces into four vectors. */
INLINE void exchange_back(vec t[4]) {
#if LANES == 8
    vec a = t[0], b = t[1], c = t[2], d = t[3];
    t[0] = LOW(a, c), t[1] = HIGH(a, c), t[2] = LOW(b, d), t[3] = HIGH(b, d);
#else
    exchange(t); /* the transposition of a square is its own inverse */
#endif
}

/* A hash's half row of 16 words is HALF_VECTORS vectors; vector i of an exchanged half belongs to hash i / that. */
#define HALF_VECTORS (16 / LANES)
#define ROW_OF(i) (32 * ((i) / (HALF_VECTORS ? HALF_VECTORS : 1)) + LANES * ((i) % (HALF_VECTORS ? HALF_VECTORS : 1)))

INLINE void put_row(uint32_t *row, const block *x, const int groups) {
    EACH UNROLL for (int h = 0; h < 2; h++) {
        vec t[4];
        UNROLL for (int k = 0; k < 4; k++) t[k] = x->half[h][k][g];
        exchange(t);
        UNROLL for (int i = 0; i < 4; i++) store(row + 32 * HASHES * g + 16 * h + ROW_OF(i), t[i]);
    }
}

/* x ^= the row of each hash */
INLINE void xor_rows(block *x, const uint32_t *v, const int groups) {
    EACH {
        uint32_t at[LANES];
        const uint32_t *rows[HASHES];
        store(at, x->half[1][0][g] & (N - 1));
        UNROLL for (int i = 0; i < HASHES; i++) {
            rows[i] = v + (size_t)(at[4 * i] / GAP) * 32 * HASHES * groups + 32 * (HASHES * g + i);
        }
#if GAP > 1
        if (at[0] % GAP) {
            block again;
            UNROLL for (int k = 0; k < 8; k++) again.half[k / 4][k % 4][0] = load(rows[0] + 4 * k);
            KEEP_LOOP for (uint32_t missing = at[0] % GAP; missing; missing--) block_mix(&again, 1);
            UNROLL for (int k = 0; k < 8; k++) x->half[k / 4][k % 4][g] ^= again.half[k / 4][k % 4][0];
            continue;
        }
#endif
        UNROLL for (int h = 0; h < 2; h++) {
            vec t[4];
            UNROLL for (int i = 0; i < 4; i++) t[i] = load(rows[ROW_OF(i) / 32] + 16 * h + ROW_OF(i) % 32);
            exchange_back(t);
            UNROLL for (int k = 0; k < 4; k++) x->half[h][k][g] ^= t[k];
        }
    }
}

INLINE void ro_mix(block *x, uint32_t *v, const int groups) {
    const size_t row_words = (size_t)32 * HASHES * groups;
    for (int i = 0; i < N; i++) {
        if (i % GAP == 0) {
            uint32_t *row = v + i / GAP * row_words;
            UNROLL for (size_t k = 0; k < row_words; k += 16) __builtin_prefetch(row + row_words + k, 1);
            put_row(row, x, groups);
        }
        block_mix(x, groups);
    }
    for (int i = 0; i < N; i++) {
        xor_rows(x, v, groups);
        block_mix(x, groups);
    }
}

/* The number of groups is a constant in each of these. */
FUNCTION void ro_mix_1(block *x, uint32_t *v) { ro_mix(x, v, 1); }
FUNCTION void ro_mix_2(block *x, uint32_t *v) { ro_mix(x, v, GROUPS < 2 ? GROUPS : 2); }
FUNCTION void ro_mix_4(block *x, uint32_t *v) { ro_mix(x, v, GROUPS < 4 ? GROUPS : 4); }
FUNCTION void ro_mix_all(block *x, uint32_t *v) { ro_mix(x, v, GROUPS); }

/* Up to TOTAL hashes, in no more groups than they need. */
FUNCTION void hash(void *v, const uint8_t *headers, size_t count, uint8_t *digests) {
    vec words[CHUNKS][32];
    hmac_key keys[CHUNKS];
    block x;
    memset(&x, 0, sizeof x);
    for (size_t c = 0; c * LANES < count; c++) {
        pbkdf2_start(&keys[c], words[c], headers + MG_HEADER_BYTES * LANES * c, count - LANES * c);
    }
    uint32_t *const in = (uint32_t *)words, *const state = (uint32_t *)&x;
#define IN(n, k) in[32 * LANES * ((n) / LANES) + LANES * (k) + (n) % LANES]
#define STATE(n, h, k, w) state[((4 * (h) + (k)) * GROUPS + (n) / HASHES) * LANES + 4 * ((n) % HASHES) + (w)]
    for (size_t n = 0; n < count; n++) {
        for (int i = 0; i < 32; i++) STATE(n, i / 16, i / 4 % 4, i % 4) = IN(n, i / 16 * 16 + DIAGONAL[i / 4 % 4][i % 4]);
    }
    if (count <= HASHES) ro_mix_1(&x, v);
    else if (count <= 2 * HASHES) ro_mix_2(&x, v);
    else if (count <= 4 * HASHES) ro_mix_4(&x, v);
    else ro_mix_all(&x, v);
    for (size_t n = 0; n < count; n++) {
        for (int i = 0; i < 32; i++) IN(n, i / 16 * 16 + DIAGONAL[i / 4 % 4][i % 4]) = STATE(n, i / 16, i / 4 % 4, i % 4);
    }
    for (size_t c = 0; c * LANES < count; c++) {
        pbkdf2_finish(&keys[c], words[c], digests + MG_HASH_BYTES * LANES * c, count - LANES * c);
    }
}

/* one row more: the next one is asked for also behind the last */
const mg_kernel GLUE(mg_, NAME) = {TEXT(NAME), 4 * (size_t)(N / GAP + 1) * 32 * TOTAL, TOTAL, hash, NARROW, HASHES};
