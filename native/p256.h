/* ES256 signatures, eight at a time (SEC 1, 4.1.4), by Intel's crypto_mb. */
#ifndef MG_P256_H
#define MG_P256_H

#include <stddef.h>
#include <stdint.h>

/* Tells whether this processor has the instructions; without them a check would end the process. */
int mg_p256_supported(void);

/* A signature to check: r, s, the digest and the key's affine x and y, each 32 bytes, big endian. */
enum { MG_P256_JOB_BYTES = 160 };

/* Checks `count` signatures; ok[k] is 1 when s is at most half the order (P-SIG-1) and the signature is the key's.
   Keys must be points of the curve, and the processor one that is supported. */
void mg_p256_verify(const uint8_t *jobs, size_t count, uint8_t *ok);

#endif
