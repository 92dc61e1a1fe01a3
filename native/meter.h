/* Energy from samples (P-BAT-4): exact sums, in units of 0.5e-15 J. */
#ifndef MG_METER_H
#define MG_METER_H

#include <stddef.h>
#include <stdint.h>

/* The sample before: its current, its power after the dead band, its time since boot. */
typedef struct mg_sample { int64_t current_ua; int64_t power_pw; int64_t boot_ms; } mg_sample;

/* What samples add; 128-bit sums as low and high word. */
typedef struct mg_growth {
    uint64_t forward[2], reverse[2], square_current[2];
    int64_t gap_ms, counted_ms, longest_ms;
} mg_growth;

/* Sums `count` samples (little-endian 32-bit arrays, offsets unsigned) after `before` (or NULL).
   Returns 1 when their times rise, else 0. Times and limits stay below 2^62, spans counted below 2^32. */
int mg_measure(const uint8_t *voltage_uv, const uint8_t *current_ua, const uint8_t *offsets_ms, size_t count,
               int64_t t0_boot_ms, const mg_sample *before, int64_t longest_allowed_ms, int64_t dead_band_ua,
               mg_growth *growth);

#endif
