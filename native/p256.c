/* ES256 signatures, eight at a time, by Intel's crypto_mb (Apache-2.0, linked statically from the package
   ipp-crypto-static; its interface is documented at intel/cryptography-primitives, crypto_mb). */
#include "p256.h"

#include <stdlib.h>
#include <string.h>

enum { LANES = 8, BYTES = 32, WORDS = 4, STATUS_BITS = 4 };

typedef unsigned int mbx_status;
mbx_status mbx_nistp256_ecdsa_verify_mb8(const uint8_t *const r[LANES], const uint8_t *const s[LANES],
                                         const uint8_t *const digest[LANES], const uint64_t *const x[LANES],
                                         const uint64_t *const y[LANES], const uint64_t *const z[LANES],
                                         uint8_t *buffer);

/* Its other interface, which is not used, stands beside this one in the archive and asks for OpenSSL. */
#define UNUSED(name)                                                                                                   \
    __attribute__((visibility("hidden"))) void name(void);                                                              \
    void name(void) { abort(); }
UNUSED(BN_bin2bn)
UNUSED(BN_bn2lebinpad)
UNUSED(BN_num_bits)
UNUSED(ECDSA_SIG_get0)

static const uint8_t ORDER[BYTES] = {
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51};
static const uint8_t HALF_ORDER[BYTES] = {
    0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xde, 0x73, 0x7d, 0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8};
static const uint8_t ZERO[BYTES];

/* A big-endian number as words, the lowest first. */
static void to_words(uint64_t words[WORDS], const uint8_t *number)
{
    for (int k = 0; k < WORDS; k++) {
        words[k] = 0;
        for (int b = 0; b < 8; b++)
            words[k] = words[k] << 8 | number[BYTES - 8 * (k + 1) + b];
    }
}

int mg_p256_supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("bmi2");
}

/* A digest below the order, which the library expects: less than two orders fit in 256 bits. */
static void reduce(uint8_t out[BYTES], const uint8_t *digest)
{
    int borrow = 0, over = memcmp(digest, ORDER, BYTES) >= 0;
    for (int k = BYTES - 1; k >= 0; k--) {
        int byte = digest[k] - (over ? ORDER[k] : 0) - borrow;
        borrow = byte < 0;
        out[k] = (uint8_t)byte;
    }
}

void mg_p256_verify(const uint8_t *jobs, size_t count, uint8_t *ok)
{
    for (size_t first = 0; first < count; first += LANES) {
        const uint8_t *r[LANES], *s[LANES], *digest[LANES];
        const uint64_t *x[LANES], *y[LANES];
        uint64_t xs[LANES][WORDS], ys[LANES][WORDS];
        uint8_t digests[LANES][BYTES];
        for (int lane = 0; lane < LANES; lane++) {
            size_t at = first + (size_t)lane < count ? first + (size_t)lane : first; /* what is left of the lanes */
            const uint8_t *job = jobs + MG_P256_JOB_BYTES * at;
            r[lane] = job;
            s[lane] = job + BYTES;
            reduce(digests[lane], job + 2 * BYTES);
            digest[lane] = digests[lane];
            to_words(xs[lane], job + 3 * BYTES);
            to_words(ys[lane], job + 4 * BYTES);
            x[lane] = xs[lane];
            y[lane] = ys[lane];
        }
        mbx_status status = mbx_nistp256_ecdsa_verify_mb8(r, s, digest, x, y, NULL, NULL);
        for (int lane = 0; lane < LANES && first + (size_t)lane < count; lane++) {
            unsigned one = status >> (STATUS_BITS * lane) & 0xf;
            ok[first + (size_t)lane] = one == 0 && memcmp(r[lane], ZERO, BYTES) > 0 && memcmp(r[lane], ORDER, BYTES) < 0 &&
                                       memcmp(s[lane], ZERO, BYTES) > 0 && memcmp(s[lane], HALF_ORDER, BYTES) <= 0;
        }
    }
}
