/* The portable kernel, and its ends for kernels that run one hash in the integer unit. */
#ifndef MG_PORTABLE_H
#define MG_PORTABLE_H
#include "scrypt.h"

typedef struct {
    uint32_t inner[8], outer[8]; /* SHA-256 states after the key's block (RFC 2104) */
} mg_hmac_key;

/* x = PBKDF2(header, header), 128 bytes as little-endian words */
void mg_pbkdf2_start(mg_hmac_key *key, uint32_t x[32], const uint8_t header[MG_HEADER_BYTES]);
/* digest = PBKDF2(header, x), 32 bytes */
void mg_pbkdf2_finish(const mg_hmac_key *key, const uint32_t x[32], uint8_t digest[MG_HASH_BYTES]);
#endif
