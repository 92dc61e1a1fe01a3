/* Samples, and the means of their minutes, as InfluxDB's line protocol, every number exactly, from integers. */
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

static char *values_and_end(char *out, int64_t voltage_uv, int64_t current_ua, int64_t power_pw, uint64_t t_ns)
{
    out = decimal(text(out, "v=", 2), voltage_uv, 1000000, 6);
    out = decimal(text(out, ",i=", 3), current_ua, 1000000, 6);
    out = decimal(text(out, ",p=", 3), power_pw, 1000000000000, 12);
    *out++ = ' ';
    out = digits(out, t_ns, 1);
    *out++ = '\n';
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
        *end++ = ' ';
        end = values_and_end(end, voltage, current, voltage * current,
                             ((uint64_t)t0_ms + mg_uint32_at(offsets_ms, k)) * 1000000);
    }
    return (size_t)(end - out);
}

size_t mg_minute_lines(const char *tags, size_t tags_size, const uint8_t *voltage_uv, const uint8_t *current_ua,
                       const uint8_t *offsets_ms, size_t count, int64_t t0_ms, int64_t mark_ns, char *out)
{
    char *end = out;
    for (size_t k = 0; k < count;) {
        uint64_t minute = ((uint64_t)t0_ms + mg_uint32_at(offsets_ms, k)) / 60000;
        int64_t voltage = 0, current = 0, n = 0;
        __int128 power = 0;
        for (; k < count && ((uint64_t)t0_ms + mg_uint32_at(offsets_ms, k)) / 60000 == minute; k++, n++) {
            int64_t v = mg_int32_at(voltage_uv, k), i = mg_int32_at(current_ua, k);
            voltage += v;
            current += i;
            power += v * i;
        }
        end = text(end, "minute,", 7);
        end = text(end, tags, tags_size);
        end = text(end, " n=", 3);
        end = digits(end, (uint64_t)n, 1);
        end = text(end, "i,", 2);
        end = values_and_end(end, voltage / n, current / n, (int64_t)(power / n),
                             minute * 60000000000 + (uint64_t)mark_ns);
    }
    return (size_t)(end - out);
}
