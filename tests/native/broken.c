/* A kernel that gives right digests in all lanes but its last: what a wrong vector instruction looks like. */
#include <string.h>

#include "scrypt.h"

extern const mg_kernel mg_portable;

static void hash(void *scratch, const uint8_t *headers, size_t count, uint8_t *digests) {
    mg_portable.hash(scratch, headers, count, digests);
    if (count == 4) digests[4 * MG_HASH_BYTES - 1] ^= 1;
}

const mg_kernel mg_broken = {"broken", 1 << 17, 4, hash, NULL, 0, 4};
