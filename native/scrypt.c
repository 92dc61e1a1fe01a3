/* Contexts, bulk checking and mining over whatever kernel a context was made with. */
#include "scrypt.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "portable.h"

/* Headers per kernel call: small enough that a stop is seen within a few milliseconds. */
enum { GROUP = 8, SCRATCH_ALIGNMENT = 64 };

static const mg_kernel *const available[] = {&mg_portable};

struct mg_context {
    const mg_kernel *kernel;
    void *scratch;
    atomic_int stop;
    atomic_uint duty_permille;
    atomic_ullong hashes;
};

size_t mg_kernels(const mg_kernel **kernels) {
    size_t count = sizeof available / sizeof *available;
    for (size_t k = 0; kernels && k < count; k++) kernels[k] = available[k];
    return count;
}

mg_context *mg_context_new(const char *kernel_name) {
    const mg_kernel *kernel = available[0];
    if (kernel_name) {
        kernel = NULL;
        for (size_t k = 0; k < sizeof available / sizeof *available; k++) {
            if (strcmp(available[k]->name, kernel_name) == 0) kernel = available[k];
        }
    }
    if (!kernel) return NULL;
    mg_context *context = calloc(1, sizeof *context);
    if (!context) return NULL;
    context->kernel = kernel;
    if (posix_memalign(&context->scratch, SCRATCH_ALIGNMENT, kernel->scratch_bytes) != 0) {
        free(context);
        return NULL;
    }
    atomic_init(&context->duty_permille, 1000);
    return context;
}

void mg_context_free(mg_context *context) {
    if (!context) return;
    free(context->scratch);
    free(context);
}

void mg_hash_many(mg_context *context, const uint8_t *headers, size_t count, uint8_t *digests) {
    context->kernel->hash(context->scratch, headers, count, digests);
}

/* Little-endian integers of 32 bytes. */
static int at_most(const uint8_t *digest, const uint8_t *target) {
    for (int k = MG_HASH_BYTES - 1; k >= 0; k--) {
        if (digest[k] != target[k]) return digest[k] < target[k];
    }
    return 1;
}

void mg_verify_many(mg_context *context, const uint8_t *headers, const uint8_t *targets, size_t count, uint8_t *ok) {
    uint8_t digests[GROUP * MG_HASH_BYTES];
    for (size_t done = 0; done < count; done += GROUP) {
        size_t group = count - done < GROUP ? count - done : GROUP;
        mg_hash_many(context, headers + MG_HEADER_BYTES * done, group, digests);
        for (size_t k = 0; k < group; k++) {
            ok[done + k] = (uint8_t)at_most(digests + MG_HASH_BYTES * k, targets + MG_HASH_BYTES * (done + k));
        }
    }
}

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Sleep until the processor time used is no more than `duty` of the wall time since the start. */
static void rest(const mg_context *context, int64_t wall_start, int64_t busy_start) {
    unsigned duty = atomic_load_explicit(&context->duty_permille, memory_order_relaxed);
    if (duty >= 1000) return;
    const int64_t slice_ns = 5000000; /* look at the stop flag this often while resting */
    for (;;) {
        int64_t busy = now_ns(CLOCK_THREAD_CPUTIME_ID) - busy_start;
        int64_t wait = busy * 1000 / (duty ? duty : 1) - (now_ns(CLOCK_MONOTONIC) - wall_start);
        if (wait <= 0 || atomic_load_explicit(&context->stop, memory_order_relaxed)) return;
        struct timespec pause = {0, (long)(wait < slice_ns ? wait : slice_ns)};
        nanosleep(&pause, NULL);
    }
}

int mg_mine(mg_context *context, const uint8_t prefix[76], const uint8_t target[32], uint32_t first, uint32_t last,
            uint32_t *nonce, uint64_t *next) {
    uint8_t headers[GROUP * MG_HEADER_BYTES], digests[GROUP * MG_HASH_BYTES];
    int64_t wall_start = now_ns(CLOCK_MONOTONIC), busy_start = now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (size_t k = 0; k < GROUP; k++) memcpy(headers + MG_HEADER_BYTES * k, prefix, 76);
    for (uint64_t base = first; base <= last; base += GROUP) {
        *next = base;
        if (atomic_load_explicit(&context->stop, memory_order_relaxed)) return MG_STOPPED;
        size_t group = last - base + 1 < GROUP ? (size_t)(last - base + 1) : GROUP;
        for (size_t k = 0; k < group; k++) {
            uint32_t n = (uint32_t)(base + k);
            uint8_t *field = headers + MG_HEADER_BYTES * k + 76;
            field[0] = (uint8_t)n, field[1] = (uint8_t)(n >> 8), field[2] = (uint8_t)(n >> 16);
            field[3] = (uint8_t)(n >> 24);
        }
        mg_hash_many(context, headers, group, digests);
        atomic_fetch_add_explicit(&context->hashes, group, memory_order_relaxed);
        for (size_t k = 0; k < group; k++) {
            if (at_most(digests + MG_HASH_BYTES * k, target)) {
                *nonce = (uint32_t)(base + k);
                *next = base + k + 1;
                return MG_FOUND;
            }
        }
        rest(context, wall_start, busy_start);
    }
    *next = (uint64_t)last + 1;
    return MG_RANGE_DONE;
}

void mg_stop(mg_context *context, int stop) { atomic_store_explicit(&context->stop, stop, memory_order_relaxed); }

void mg_set_duty(mg_context *context, unsigned permille) {
    atomic_store_explicit(&context->duty_permille, permille, memory_order_relaxed);
}

uint64_t mg_hashes(const mg_context *context) { return atomic_load_explicit(&context->hashes, memory_order_relaxed); }
