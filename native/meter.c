/* The sums of P-BAT-4 over the samples of one channel; maxgreen/verify/meter.py has the same in Python. */
#include "meter.h"

#include "samples.h"

static void put(uint64_t *words, unsigned __int128 value)
{
    words[0] = (uint64_t)value;
    words[1] = (uint64_t)(value >> 64);
}

int mg_measure(const uint8_t *voltage_uv, const uint8_t *current_ua, const uint8_t *offsets_ms, size_t count,
               int64_t t0_boot_ms, const int64_t *before, int64_t longest_allowed_ms, int64_t dead_band_ua,
               uint64_t *sums)
{
    unsigned __int128 forward = 0, reverse = 0, square_current = 0;
    int64_t gap_ms = 0, counted_ms = 0, longest_ms = 0;
    int known = before != 0, rises = 1;
    int64_t last_current_ua = known ? before[0] : 0, last_boot_ms = known ? before[2] : 0;
    int64_t last_power_pw = known ? before[1] : 0;
    for (size_t k = 0; k < count; k++) {
        int64_t amperes = mg_int32_at(current_ua, k);
        int64_t boot_ms = t0_boot_ms + mg_uint32_at(offsets_ms, k);
        int64_t power_pw = (amperes < 0 ? -amperes : amperes) >= dead_band_ua ? mg_int32_at(voltage_uv, k) * amperes : 0;
        if (k && boot_ms <= last_boot_ms)
            rises = 0;
        int64_t span_ms = boot_ms - last_boot_ms;
        if (known && span_ms > longest_allowed_ms) {
            gap_ms += span_ms;
        } else if (known && span_ms > 0) {
            __int128 energy = ((__int128)last_power_pw + power_pw) * span_ms;
            if (energy >= 0)
                forward += (unsigned __int128)energy;
            else
                reverse += (unsigned __int128)-energy;
            square_current += ((unsigned __int128)(last_current_ua * last_current_ua) +
                               (unsigned __int128)(amperes * amperes)) * (uint64_t)span_ms;
            counted_ms += span_ms;
            if (span_ms > longest_ms)
                longest_ms = span_ms;
        }
        known = 1;
        last_current_ua = amperes;
        last_boot_ms = boot_ms;
        last_power_pw = power_pw;
    }
    put(sums + MG_FORWARD, forward);
    put(sums + MG_REVERSE, reverse);
    put(sums + MG_SQUARE_CURRENT, square_current);
    sums[MG_GAP_MS_ADDED] = (uint64_t)gap_ms;
    sums[MG_COUNTED_MS] = (uint64_t)counted_ms;
    sums[MG_LONGEST_MS] = (uint64_t)longest_ms;
    return rises;
}
