"""Builds the extension `native._scrypt` (cffi, API mode), which setup.py names: scrypt, the meter's sums, lines."""

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
typedef struct mg_sample { int64_t current_ua; int64_t power_pw; int64_t boot_ms; } mg_sample;
typedef struct mg_growth {
    uint64_t forward[2], reverse[2], square_current[2];
    int64_t gap_ms, counted_ms, longest_ms;
} mg_growth;
int mg_measure(const uint8_t *voltage_uv, const uint8_t *current_ua, const uint8_t *offsets_ms, size_t count,
               int64_t t0_boot_ms, const mg_sample *before, int64_t longest_allowed_ms, int64_t dead_band_ua,
               mg_growth *growth);
enum { MG_LINE_BYTES = 128 };
size_t mg_sample_lines(const char *tags, size_t tags_size, const uint8_t *voltage_uv, const uint8_t *current_ua,
                       const uint8_t *offsets_ms, size_t count, int64_t t0_ms, char *out);
"""

ffibuilder = FFI()
ffibuilder.cdef(CDEF)
ffibuilder.set_source(
    "native._scrypt",
    '#include "scrypt.h"\n#include "meter.h"\n#include "lines.h"',
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
