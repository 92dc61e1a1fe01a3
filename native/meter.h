/* Energy from samples (P-BAT-4): exact sums, in units of 0.5e-15 J. */
#ifndef MG_METER_H
#define MG_METER_H

#include <stddef.h>
#include <stdint.h>

/* What samples add; each of the first three is 128 bits, the low word first. */
enum { MG_FORWARD, MG_REVERSE = 2, MG_SQUARE_CURRENT = 4, MG_GAP_MS_ADDED = 6, MG_COUNTED_MS, MG_LONGEST_MS, MG_SUMS };

/* Sums `count` samples (arrays of samples.h) after the sample `before`, which is its current, its power after the dead
   band and its time since boot, or NULL. Returns 1 when their times rise, else 0. Times and limits stay below 2^62, spans
   counted below 2^32. */
int mg_measure(const uint8_t *voltage_uv, const uint8_t *current_ua, const uint8_t *offsets_ms, size_t count,
               int64_t t0_boot_ms, const int64_t *before, int64_t longest_allowed_ms, int64_t dead_band_ua,
               uint64_t *sums);

#endif
