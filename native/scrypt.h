/* scrypt(N=1024, r=1, p=1) over 80-byte headers; the interface between kernels and Python. */
#ifndef MG_SCRYPT_H
#define MG_SCRYPT_H

#include <stddef.h>
#include <stdint.h>

#define MG_HEADER_BYTES 80
#define MG_HASH_BYTES 32

/* A kernel hashes `count` headers of 80 bytes, 1 to its lanes, into `count` digests of 32 bytes. */
typedef void (*mg_hash_fn)(void *scratch, const uint8_t *headers, size_t count, uint8_t *digests);

typedef struct mg_kernel {
    const char *name;
    size_t scratch_bytes;
    size_t lanes; /* headers that one round works on */
    mg_hash_fn hash;
    const struct mg_kernel *narrow; /* quicker for the last `narrow_lanes` headers or fewer; may be NULL */
    size_t narrow_lanes;
    size_t step; /* a round costs the same for 1..step headers, and again for each step more */
} mg_kernel;

/* The kernels that this processor can run, portable last; returns their number. */
size_t mg_kernels(const mg_kernel **kernels);

/* 1 when the kernel computes the digests of known headers in each of its lanes, 0 when it does not, -1: no memory. */
int mg_self_test(const char *kernel_name);

typedef struct mg_context mg_context;

mg_context *mg_context_new(const char *kernel_name); /* NULL: no such kernel, or no memory */
void mg_context_free(mg_context *context);

void mg_hash_many(mg_context *context, const uint8_t *headers, size_t count, uint8_t *digests);
/* ok[k] = 1 when digest k, a little-endian integer, is at most target k (32 bytes, little endian). */
void mg_verify_many(mg_context *context, const uint8_t *headers, const uint8_t *targets, size_t count, uint8_t *ok);

enum { MG_FOUND = 1, MG_RANGE_DONE = 0, MG_STOPPED = -1 };

/* Mine nonces first..last of a 76-byte prefix. Returns MG_FOUND with *nonce, MG_RANGE_DONE or MG_STOPPED.
 * *next is the first nonce that was not tried. Duty (per mille of one core) and stop may change meanwhile. */
int mg_mine(mg_context *context, const uint8_t prefix[76], const uint8_t target[32], uint32_t first, uint32_t last,
            uint32_t *nonce, uint64_t *next);
void mg_stop(mg_context *context, int stop);
void mg_set_duty(mg_context *context, unsigned permille);
uint64_t mg_hashes(const mg_context *context);

#endif
