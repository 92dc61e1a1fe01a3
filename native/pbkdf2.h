/* Template: PBKDF2-HMAC-SHA256 at both ends of scrypt, LANES headers side by side (RFC 7914, RFC 8018, FIPS 180-4).
 *
 * Word k of lane l lies in word l of vector k. A lane beyond the last header repeats the last one.
 */
#include "lanes.h"
#include "sha256.h"

typedef struct {
    vec inner[8], outer[8]; /* SHA-256 states after the key's block (RFC 2104) */
} hmac_key;

#define SIGMA(x, a, b, c) (ROTL(x, 32 - (a)) ^ ROTL(x, 32 - (b)) ^ ROTL(x, 32 - (c)))

/* One block; `w` is used up. */
FUNCTION void sha256_block(vec state[8], vec w[16]) {
    vec s[8];
    UNROLL for (int k = 0; k < 8; k++) s[k] = state[k];
    KEEP_LOOP for (int t = 0; t < 64; t += 16) {
        UNROLL for (int i = 0; i < 16; i++) {
            /* the roles a..h move by one word each round */
            vec a = s[(16 - i) & 7], b = s[(17 - i) & 7], c = s[(18 - i) & 7], e = s[(20 - i) & 7];
            vec f = s[(21 - i) & 7], g = s[(22 - i) & 7];
            vec t1 = s[(23 - i) & 7] + SIGMA(e, 6, 11, 25) + (g ^ (e & (f ^ g))) + sha256_k[t + i] + w[i];
            s[(19 - i) & 7] += t1;
            s[(23 - i) & 7] = t1 + SIGMA(a, 2, 13, 22) + ((a & b) | (c & (a | b)));
            vec w1 = w[(i + 1) & 15], w14 = w[(i + 14) & 15];
            w[i] += (ROTL(w1, 25) ^ ROTL(w1, 14) ^ w1 >> 3) + w[(i + 9) & 15] + (ROTL(w14, 15) ^ ROTL(w14, 13) ^ w14 >> 10);
        }
    }
    UNROLL for (int k = 0; k < 8; k++) state[k] += s[k];
}

/* The last block: `count` words, the end bit, and the length of the whole message in bytes. */
FUNCTION void sha256_last(vec state[8], const vec *words, int count, uint32_t bytes) {
    vec w[16] = {0};
    for (int k = 0; k < count; k++) w[k] = words[k];
    w[count] += 0x80000000;
    w[15] += 8 * bytes;
    sha256_block(state, w);
}

FUNCTION void sha256_begin(vec state[8]) {
    for (int k = 0; k < 8; k++) state[k] = (vec){0} + sha256_start[k];
}

FUNCTION void hmac_pad(vec state[8], const vec digest[8], uint32_t pad) {
    vec w[16];
    for (int k = 0; k < 16; k++) w[k] = (k < 8 ? digest[k] : (vec){0}) ^ pad;
    sha256_begin(state);
    sha256_block(state, w);
}

/* x = PBKDF2(header, header), 128 bytes as little-endian words; `count` headers of the LANES are there. */
FUNCTION void pbkdf2_start(hmac_key *key, vec x[32], const uint8_t *headers, size_t count) {
    uint32_t words[20][LANES];
    vec header[20], w[16], digest[8], salted[8];
    for (size_t l = 0; l < LANES; l++) {
        const uint8_t *from = headers + MG_HEADER_BYTES * (l < count ? l : count - 1);
        for (int k = 0; k < 20; k++, from += 4) {
            words[k][l] = (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
        }
    }
    for (int k = 0; k < 20; k++) header[k] = load(words[k]);
    memcpy(w, header, sizeof w);
    sha256_begin(digest); /* a key of more than 64 bytes is hashed first (RFC 2104) */
    sha256_block(digest, w);
    sha256_last(digest, header + 16, 4, 80);
    hmac_pad(key->inner, digest, 0x36363636);
    hmac_pad(key->outer, digest, 0x5c5c5c5c);
    memcpy(w, header, sizeof w);
    memcpy(salted, key->inner, sizeof salted);
    sha256_block(salted, w);
    for (uint32_t i = 1; i <= 4; i++) {
        vec inner[8], outer[8], tail[5];
        memcpy(inner, salted, sizeof inner);
        memcpy(outer, key->outer, sizeof outer);
        memcpy(tail, header + 16, 4 * sizeof(vec));
        tail[4] = (vec){0} + i;
        sha256_last(inner, tail, 5, 64 + 84);
        sha256_last(outer, inner, 8, 64 + 32);
        for (int k = 0; k < 8; k++) x[8 * (i - 1) + k] = SWAP_BYTES(outer[k]);
    }
}

/* digests = PBKDF2(header, x), 32 bytes of each of `count` lanes. */
FUNCTION void pbkdf2_finish(const hmac_key *key, const vec x[32], uint8_t *digests, size_t count) {
    vec inner[8], outer[8], w[16], one = (vec){0} + 1;
    memcpy(inner, key->inner, sizeof inner);
    memcpy(outer, key->outer, sizeof outer);
    for (int k = 0; k < 32; k += 16) {
        for (int i = 0; i < 16; i++) w[i] = SWAP_BYTES(x[k + i]);
        sha256_block(inner, w);
    }
    sha256_last(inner, &one, 1, 64 + 132);
    sha256_last(outer, inner, 8, 64 + 32);
    for (int k = 0; k < 8; k++) {
        uint32_t words[LANES];
        store(words, outer[k]);
        for (size_t l = 0; l < LANES && l < count; l++) {
            uint8_t *to = digests + MG_HASH_BYTES * l + 4 * k;
            to[0] = (uint8_t)(words[l] >> 24), to[1] = (uint8_t)(words[l] >> 16), to[2] = (uint8_t)(words[l] >> 8);
            to[3] = (uint8_t)words[l];
        }
    }
}
