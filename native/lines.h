/* Samples as InfluxDB's line protocol; ingest/view/lines.py has the same in Python. */
#ifndef MG_LINES_H
#define MG_LINES_H

#include <stddef.h>
#include <stdint.h>

/* The most bytes of one line beside its tags. */
enum { MG_LINE_BYTES = 128 };

/* Writes "sample,<tags> v=…,i=…,p=… <ns>\n" for each of `count` samples (little-endian 32-bit arrays, offsets unsigned)
   into `out`, which has room for count * (MG_LINE_BYTES + tags_size) bytes; t0_ms is from 0 to 2^43. Returns its size. */
size_t mg_sample_lines(const char *tags, size_t tags_size, const uint8_t *voltage_uv, const uint8_t *current_ua,
                       const uint8_t *offsets_ms, size_t count, int64_t t0_ms, char *out);

/* Writes "minute,<tags> n=…i,v=…,i=…,p=… <ns>\n" for each UTC minute of the same samples: how many they are and their
   means, rounded towards zero; its time is the minute's start and `mark_ns`. Needs no more room than the samples. */
size_t mg_minute_lines(const char *tags, size_t tags_size, const uint8_t *voltage_uv, const uint8_t *current_ua,
                       const uint8_t *offsets_ms, size_t count, int64_t t0_ms, int64_t mark_ns, char *out);

#endif
