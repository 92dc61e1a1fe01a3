/* Contexts, bulk checking and mining over whatever kernel a context was made with. */
#include "scrypt.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __aarch64__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif


enum { GROUP = 288 /* whole rounds of every x86-64 kernel */, SCRATCH_ALIGNMENT = 64, HUGE_PAGE = 1 << 21 };

#if defined __x86_64__
extern const mg_kernel mg_avx512_vertical, mg_avx512_diagonal, mg_avx2_mixed, mg_avx2_vertical, mg_avx2_diagonal;
extern const mg_kernel mg_sse2_diagonal;

static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
#elif defined __aarch64__
extern const mg_kernel mg_neon_mixed, mg_neon_vertical, mg_neon_diagonal, mg_neon_gap2, mg_neon_gap4;

static int has_neon(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0; }
#endif

extern const mg_kernel mg_portable;

static int always(void) { return 1; }

static const struct {
    const mg_kernel *kernel;
    int (*usable)(void);
} built[] = {
#if defined __x86_64__
    {&mg_avx512_vertical, has_avx512}, {&mg_avx512_diagonal, has_avx512}, {&mg_avx2_mixed, has_avx2},
    {&mg_avx2_vertical, has_avx2},     {&mg_avx2_diagonal, has_avx2},     {&mg_sse2_diagonal, always},
#elif defined __aarch64__
    {&mg_neon_mixed, has_neon},        {&mg_neon_vertical, has_neon},     {&mg_neon_diagonal, has_neon},
    {&mg_neon_gap2, has_neon},         {&mg_neon_gap4, has_neon},
#endif
#ifdef MG_EXTRA_KERNEL /* a test's */
    {&MG_EXTRA_KERNEL, always},
#endif
    {&mg_portable, always},
};

struct mg_context {
    const mg_kernel *kernel;
    void *scratch;
    atomic_int stop;
    atomic_uint duty_permille;
    atomic_ullong hashes;
    uint8_t headers[GROUP * MG_HEADER_BYTES], digests[GROUP * MG_HASH_BYTES];
};

size_t mg_kernels(const mg_kernel **kernels) {
    size_t count = 0;
    for (size_t k = 0; k < sizeof built / sizeof *built; k++) {
        if (!built[k].usable()) continue;
        if (kernels) kernels[count] = built[k].kernel;
        count++;
    }
    return count;
}

static const mg_kernel *find_kernel(const char *name) {
    for (size_t k = 0; k < sizeof built / sizeof *built; k++) {
        if (strcmp(built[k].kernel->name, name) == 0) return built[k].usable() ? built[k].kernel : NULL;
    }
    return NULL;
}

mg_context *mg_context_new(const char *kernel_name) {
    const mg_kernel *kernel = find_kernel(kernel_name);
    mg_context *context = kernel ? calloc(1, sizeof *context) : NULL;
    if (!context) return NULL;
    size_t bytes = kernel->scratch_bytes;
    if (kernel->narrow && kernel->narrow->scratch_bytes > bytes) bytes = kernel->narrow->scratch_bytes;
    size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : SCRATCH_ALIGNMENT;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    if (posix_memalign(&context->scratch, alignment, bytes) != 0) {
        free(context);
        return NULL;
    }
    if (alignment == HUGE_PAGE) madvise(context->scratch, bytes, MADV_HUGEPAGE); /* fewer TLB misses; may be refused */
    context->kernel = kernel;
    atomic_init(&context->duty_permille, 1000);
    return context;
}

void mg_context_free(mg_context *context) {
    if (!context) return;
    free(context->scratch);
    free(context);
}

void mg_hash_many(mg_context *context, const uint8_t *headers, size_t count, uint8_t *digests) {
    const mg_kernel *kernel = context->kernel;
    while (count) {
        const mg_kernel *with = kernel;
        size_t some = count < kernel->lanes ? count : kernel->lanes;
        size_t over = kernel->narrow ? some % kernel->step : 0;
        if (over && over <= kernel->narrow_lanes) {
            if (some > over) some -= over;
            else with = kernel->narrow;
        }
        with->hash(context->scratch, headers, some, digests);
        headers += MG_HEADER_BYTES * some, digests += MG_HASH_BYTES * some, count -= some;
    }
}

/* The header of Litecoin's first block (litecoin/src/chainparams.cpp), and 80 bytes 0, 1, 2, ...; digests by OpenSSL. */
static const uint8_t known[2][MG_HEADER_BYTES] = {
    {0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
     0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
     0x00, 0x00, 0x00, 0x00, 0xd9, 0xce, 0xd4, 0xed, 0x11, 0x30, 0xf7, 0xb7, 0xfa, 0xad, 0x9b, 0xe2,
     0x53, 0x23, 0xff, 0xaf, 0xa3, 0x32, 0x32, 0xa1, 0x7c, 0x3e, 0xdf, 0x6c, 0xfd, 0x97, 0xbe, 0xe6,
     0xba, 0xfb, 0xdd, 0x97, 0xb9, 0xaa, 0x8e, 0x4e, 0xf0, 0xff, 0x0f, 0x1e, 0xcd, 0x51, 0x3f, 0x7c},
    {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
     0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
     0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f,
     0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f,
     0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f}};
static const uint8_t known_digest[2][MG_HASH_BYTES] = {
    {0x00, 0x1e, 0x67, 0xb0, 0x13, 0x72, 0x6f, 0xd7, 0x38, 0x2e, 0x9a, 0xcb, 0x69, 0x16, 0x5b, 0x4b,
     0x63, 0x16, 0x22, 0x7f, 0xb3, 0x15, 0x6b, 0x5b, 0x41, 0x4b, 0xa6, 0x34, 0x0c, 0x05, 0x00, 0x00},
    {0xbc, 0x54, 0x0a, 0x1a, 0x80, 0x1d, 0xf9, 0x6e, 0x49, 0x30, 0x05, 0xc7, 0x1e, 0x01, 0x0e, 0x2d,
     0x38, 0x76, 0x07, 0xfb, 0xf0, 0xfe, 0xc4, 0x16, 0xfd, 0x3c, 0x26, 0x45, 0xaa, 0x1b, 0xa9, 0xd2}};

#define WHICH(lane, turn) (((lane) + (lane) / 4 + (lane) / 8 + (turn)) % 2)

int mg_self_test(const char *kernel_name) {
    mg_context *context = mg_context_new(kernel_name);
    if (!context) return -1;
    int right = 1;
    /* Every lane sees both headers, and a set's scalar hash (lane 4, 8 or 17) another one than the set's first lane.
     * One header more than a round, so that the narrow kernel is tested too. */
    size_t count = context->kernel->lanes + 1 < GROUP ? context->kernel->lanes + 1 : GROUP;
    for (size_t turn = 0; turn < 2; turn++) {
        for (size_t k = 0; k < count; k++) {
            memcpy(context->headers + MG_HEADER_BYTES * k, known[WHICH(k, turn)], MG_HEADER_BYTES);
        }
        mg_hash_many(context, context->headers, count, context->digests);
        for (size_t k = 0; k < count; k++) {
            right &= memcmp(context->digests + MG_HASH_BYTES * k, known_digest[WHICH(k, turn)], MG_HASH_BYTES) == 0;
        }
    }
    mg_context_free(context);
    return right;
}

/* Little-endian integers of 32 bytes. */
static int at_most(const uint8_t *digest, const uint8_t *target) {
    for (int k = MG_HASH_BYTES - 1; k >= 0; k--) {
        if (digest[k] != target[k]) return digest[k] < target[k];
    }
    return 1;
}

void mg_verify_many(mg_context *context, const uint8_t *headers, const uint8_t *targets, size_t count, uint8_t *ok) {
    for (size_t done = 0; done < count; done += GROUP) {
        size_t group = count - done < GROUP ? count - done : GROUP;
        mg_hash_many(context, headers + MG_HEADER_BYTES * done, group, context->digests);
        for (size_t k = 0; k < group; k++) {
            ok[done + k] = (uint8_t)at_most(context->digests + MG_HASH_BYTES * k, targets + MG_HASH_BYTES * (done + k));
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
    uint8_t *headers = context->headers, *digests = context->digests;
    const size_t round = context->kernel->lanes; /* a stop is seen after each round */
    int64_t wall_start = now_ns(CLOCK_MONOTONIC), busy_start = now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (size_t k = 0; k < round; k++) memcpy(headers + MG_HEADER_BYTES * k, prefix, 76);
    for (uint64_t base = first; base <= last; base += round) {
        *next = base;
        if (atomic_load_explicit(&context->stop, memory_order_relaxed)) return MG_STOPPED;
        size_t group = last - base + 1 < round ? (size_t)(last - base + 1) : round;
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
