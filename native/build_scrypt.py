"""Builds the extension `native._scrypt` (cffi, API mode), which setup.py names: scrypt, sums, lines, batches."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

CDEF = """
typedef struct mg_kernel { const char *name; size_t scratch_bytes; size_t lanes; ...; } mg_kernel;
size_t mg_kernels(const mg_kernel **kernels);
int mg_self_test(const char *kernel_name);
typedef struct mg_context mg_context;
mg_context *mg_context_new(const char *kernel_name);
void mg_context_free(mg_context *context);
void mg_hash_many(mg_context *context, const uint8_t *headers, size_t count, uint8_t *digests);
void mg_verify_many(mg_context *context, const uint8_t *headers, const uint8_t *targets, size_t count, uint8_t *ok);
int mg_mine(mg_context *context, const uint8_t *prefix, const uint8_t *target, uint32_t first, uint32_t last,
            uint32_t *nonce, uint64_t *next);
void mg_stop(mg_context *context, int stop);
void mg_set_duty(mg_context *context, unsigned permille);
uint64_t mg_hashes(const mg_context *context);
#define MG_SUMS ...
int mg_measure(const uint8_t *voltage_uv, const uint8_t *current_ua, const uint8_t *offsets_ms, size_t count,
               int64_t t0_boot_ms, const int64_t *before, int64_t longest_allowed_ms, int64_t dead_band_ua,
               uint64_t *sums);
enum { MG_LINE_BYTES = 128 };
size_t mg_sample_lines(const char *tags, size_t tags_size, const uint8_t *voltage_uv, const uint8_t *current_ua,
                       const uint8_t *offsets_ms, size_t count, int64_t t0_ms, char *out);
size_t mg_minute_lines(const char *tags, size_t tags_size, const uint8_t *voltage_uv, const uint8_t *current_ua,
                       const uint8_t *offsets_ms, size_t count, int64_t t0_ms, int64_t mark_ns, char *out);
#define MG_HEAD_VALUES ...
#define MG_CHANNEL_VALUES ...
#define MG_BATCH_VALUES ...
#define MG_COMMON_CHANNELS ...
#define MG_MAX_SEQ ...
#define MG_MAX_WALL_MS ...
#define MG_MAX_BOOT_MS ...
#define MG_MAX_INTERVAL_MS ...
#define MG_MAX_REGISTER ...
#define MG_MAX_CHANNEL ...
#define MG_MAX_SAMPLES ...
#define MG_MAX_NONCES ...
size_t mg_read_batch(const uint8_t *message, size_t size, int64_t *values);
"""

ffibuilder = FFI()
ffibuilder.cdef(CDEF)
ffibuilder.set_source(
    "native._scrypt",
    '#include "scrypt.h"\n#include "meter.h"\n#include "lines.h"\n#include "batch.h"',
    sources=[
        f"native/{path.name}"
        for path in sorted(HERE.glob("*.c"))
        if path.name not in {"_scrypt.c", "_p256.c", "p256.c"}
    ],
    depends=[f"native/{path.name}" for path in sorted(HERE.glob("*.h"))],
    include_dirs=[str(HERE)],
    # the kernels are vectors already: what a compiler makes of their pointers is slower
    extra_compile_args=[
        *("-O3", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-psabi"),
        *("-fno-tree-vectorize", "-fno-tree-slp-vectorize"),
    ],
)
