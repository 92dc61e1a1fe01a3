/* scrypt(1024, 1, 1) in portable C: RFC 7914 (scrypt), RFC 8018 (PBKDF2), RFC 2104 (HMAC), FIPS 180-4 (SHA-256). */
#include <string.h>

#include "scrypt.h"
#include "sha256.h"

#define N 1024
#define WORDS 32 /* a block of r = 1: two salsa matrices of 16 words */

typedef struct {
    uint32_t inner[8], outer[8]; /* SHA-256 states after the key's block (RFC 2104) */
} hmac_key;

static uint32_t load_be(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void store_be(uint8_t *p, uint32_t x) {
    p[0] = (uint8_t)(x >> 24), p[1] = (uint8_t)(x >> 16), p[2] = (uint8_t)(x >> 8), p[3] = (uint8_t)x;
}

static uint32_t load_le(const uint8_t *p) {
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static void store_le(uint8_t *p, uint32_t x) {
    p[0] = (uint8_t)x, p[1] = (uint8_t)(x >> 8), p[2] = (uint8_t)(x >> 16), p[3] = (uint8_t)(x >> 24);
}

static uint32_t rotl(uint32_t x, int n) { return x << n | x >> (32 - n); }
static uint32_t rotr(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t state[8], const uint8_t block[64]) {
    uint32_t w[64];
    for (int t = 0; t < 16; t++) w[t] = load_be(block + 4 * t);
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotr(w[t - 15], 7) ^ rotr(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotr(w[t - 2], 17) ^ rotr(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < 64; t++) {
        uint32_t t1 = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) + sha256_k[t] + w[t];
        uint32_t t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

/* SHA-256 of `size` bytes that follow `before` whole bytes already in `state` (a multiple of 64). */
static void sha256_finish(uint32_t state[8], const uint8_t *data, size_t size, size_t before, uint8_t digest[32]) {
    uint64_t bits = 8 * (uint64_t)(before + size);
    for (; size >= 64; data += 64, size -= 64) sha256_block(state, data);
    uint8_t block[64] = {0};
    memcpy(block, data, size);
    block[size] = 0x80;
    if (size >= 56) {
        sha256_block(state, block);
        memset(block, 0, sizeof block);
    }
    store_be(block + 56, (uint32_t)(bits >> 32));
    store_be(block + 60, (uint32_t)bits);
    sha256_block(state, block);
    for (int i = 0; i < 8; i++) store_be(digest + 4 * i, state[i]);
}

static void hmac_start(hmac_key *key, const uint8_t password[MG_HEADER_BYTES]) {
    uint8_t digest[32], pad[64];
    uint32_t state[8];
    memcpy(state, sha256_start, sizeof state);
    sha256_finish(state, password, MG_HEADER_BYTES, 0, digest); /* a key over 64 bytes is hashed first */
    memset(pad, 0x36, sizeof pad);
    for (int i = 0; i < 32; i++) pad[i] ^= digest[i];
    memcpy(key->inner, sha256_start, sizeof key->inner);
    sha256_block(key->inner, pad);
    memset(pad, 0x5c, sizeof pad);
    for (int i = 0; i < 32; i++) pad[i] ^= digest[i];
    memcpy(key->outer, sha256_start, sizeof key->outer);
    sha256_block(key->outer, pad);
}

/* One block of PBKDF2-HMAC-SHA256 with one iteration. */
static void pbkdf2_block(const hmac_key *key, const uint8_t *salt, size_t size, uint32_t index, uint8_t out[32]) {
    uint8_t message[128 + 4], digest[32];
    uint32_t state[8];
    memcpy(message, salt, size);
    store_be(message + size, index);
    memcpy(state, key->inner, sizeof state);
    sha256_finish(state, message, size + 4, 64, digest);
    memcpy(state, key->outer, sizeof state);
    sha256_finish(state, digest, sizeof digest, 64, out);
}

#define QUARTER(a, b, c, d)                                                                                            \
    b ^= rotl(a + d, 7), c ^= rotl(b + a, 9), d ^= rotl(c + b, 13), a ^= rotl(d + c, 18)

/* B ^= Bx; B = salsa20/8(B) */
static void xor_salsa8(uint32_t b[16], const uint32_t bx[16]) {
    for (int i = 0; i < 16; i++) b[i] ^= bx[i];
    uint32_t x0 = b[0], x1 = b[1], x2 = b[2], x3 = b[3], x4 = b[4], x5 = b[5], x6 = b[6], x7 = b[7];
    uint32_t x8 = b[8], x9 = b[9], x10 = b[10], x11 = b[11], x12 = b[12], x13 = b[13], x14 = b[14], x15 = b[15];
    for (int round = 0; round < 8; round += 2) {
        QUARTER(x0, x4, x8, x12), QUARTER(x5, x9, x13, x1);
        QUARTER(x10, x14, x2, x6), QUARTER(x15, x3, x7, x11);
        QUARTER(x0, x1, x2, x3), QUARTER(x5, x6, x7, x4);
        QUARTER(x10, x11, x8, x9), QUARTER(x15, x12, x13, x14);
    }
    b[0] += x0, b[1] += x1, b[2] += x2, b[3] += x3, b[4] += x4, b[5] += x5, b[6] += x6, b[7] += x7;
    b[8] += x8, b[9] += x9, b[10] += x10, b[11] += x11, b[12] += x12, b[13] += x13, b[14] += x14, b[15] += x15;
}

static void block_mix(uint32_t x[WORDS]) {
    xor_salsa8(x, x + 16);
    xor_salsa8(x + 16, x);
}

static void ro_mix(uint32_t x[WORDS], uint32_t (*v)[WORDS]) {
    for (int i = 0; i < N; i++) {
        memcpy(v[i], x, sizeof v[i]);
        block_mix(x);
    }
    for (int i = 0; i < N; i++) {
        const uint32_t *row = v[x[16] & (N - 1)];
        for (int k = 0; k < WORDS; k++) x[k] ^= row[k];
        block_mix(x);
    }
}

static void hash(void *scratch, const uint8_t *header, size_t count, uint8_t *digest) {
    hmac_key key;
    uint8_t block[4 * WORDS];
    uint32_t x[WORDS];
    (void)count; /* one lane */
    hmac_start(&key, header);
    for (uint32_t i = 0; i < 4; i++) pbkdf2_block(&key, header, MG_HEADER_BYTES, i + 1, block + 32 * i);
    for (int k = 0; k < WORDS; k++) x[k] = load_le(block + 4 * k);
    ro_mix(x, scratch);
    for (int k = 0; k < WORDS; k++) store_le(block + 4 * k, x[k]);
    pbkdf2_block(&key, block, sizeof block, 1, digest);
}

const mg_kernel mg_portable = {"portable", sizeof(uint32_t[N][WORDS]), 1, hash, NULL, 0, 1};
