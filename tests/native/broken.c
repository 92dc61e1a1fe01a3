/* A kernel that gives right digests in all lanes but its last: what a wrong vector instruction looks like. */
#include <string.h>

#include "scrypt.h"

extern const mg_kernel mg_portable;

static void hash(void *scratch, const uint8_t *headers, size_t count, uint8_t *digests) {
    for (size_t k = 0; k < count; k++) {
        mg_portable.hash(scratch, headers + MG_HEADER_BYTES * k, 1, digests + MG_HASH_BYTES * k);
    }
    if (count == 4) digests[4 * MG_HASH_BYTES - 1] ^= 1;
}

const mg_kernel mg_broken = {"broken", 1 << 17, 4, hash, NULL, 0, 4};
