/* Samples as InfluxDB's line protocol, every number exactly, from integers. */
#include "lines.h"

#include <string.h>

#include "samples.h"

static char *text(char *out, const char *from, size_t size)
{
    memcpy(out, from, size);
    return out + size;
}

/* The digits of a number, at least `least` of them. */
static char *digits(char *out, uint64_t value, int least)
{
    char reversed[24];
    int count = 0;
    while (value || count < least) {
        reversed[count++] = (char)('0' + value % 10);
        value /= 10;
    }
    while (count)
        *out++ = reversed[--count];
    return out;
}

/* value / scale, whose zeros are `decimals`, exactly and with no more digits than that takes. */
static char *decimal(char *out, int64_t value, uint64_t scale, int decimals)
{
    uint64_t size = value < 0 ? -(uint64_t)value : (uint64_t)value;
    if (value < 0)
        *out++ = '-';
    out = digits(out, size / scale, 1);
    if (!(size % scale))
        return out;
    *out++ = '.';
    out = digits(out, size % scale, decimals);
    while (out[-1] == '0')
        out--;
    return out;
}

size_t mg_sample_lines(const char *tags, size_t tags_size, const uint8_t *voltage_uv, const uint8_t *current_ua,
                       const uint8_t *offsets_ms, size_t count, int64_t t0_ms, char *out)
{
    char *end = out;
    for (size_t k = 0; k < count; k++) {
        int64_t voltage = mg_int32_at(voltage_uv, k), current = mg_int32_at(current_ua, k);
        end = text(end, "sample,", 7);
        end = text(end, tags, tags_size);
        end = text(end, " v=", 3);
        end = decimal(end, voltage, 1000000, 6);
        end = text(end, ",i=", 3);
        end = decimal(end, current, 1000000, 6);
        end = text(end, ",p=", 3);
        end = decimal(end, voltage * current, 1000000000000, 12);
        *end++ = ' ';
        end = digits(end, ((uint64_t)t0_ms + mg_uint32_at(offsets_ms, k)) * 1000000, 1);
        *end++ = '\n';
    }
    return (size_t)(end - out);
}
