/* Reads the common batch; every doubt is answered with 0, and the reference decides. */
#include "batch.h"

#include <string.h>

#include "samples.h"

enum { UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE };
#define MAX_INT64 0x7fffffffffffffff

typedef struct reader { const uint8_t *data; size_t at, end; int wrong; } reader;

/* The argument of the next head (RFC 8949 §3), which has the major type `major` and the shortest form. */
static uint64_t head(reader *r, unsigned major)
{
    if (r->at >= r->end || r->data[r->at] >> 5 != major) {
        r->wrong = 1;
        return 0;
    }
    unsigned info = r->data[r->at++] & 31;
    if (info < 24)
        return info;
    size_t size = (size_t)1 << (info - 24);
    if (info > 27 || r->end - r->at < size) {
        r->wrong = 1;
        return 0;
    }
    uint64_t value = 0;
    for (size_t k = 0; k < size; k++)
        value = value << 8 | r->data[r->at++];
    static const uint64_t least[] = {24, 1 << 8, 1 << 16, (uint64_t)1 << 32};
    if (value < least[info - 24])
        r->wrong = 1;
    return value;
}

/* An unsigned integer up to `most`. */
static int64_t number(reader *r, uint64_t most)
{
    uint64_t value = head(r, UNSIGNED);
    if (value > most)
        r->wrong = 1;
    return r->wrong ? 0 : (int64_t)value;
}

static void key(reader *r, uint64_t wanted)
{
    if (head(r, UNSIGNED) != wanted)
        r->wrong = 1;
}

/* Where a byte string of `size` bytes begins. */
static int64_t bytes(reader *r, uint64_t size)
{
    if (head(r, BYTES) != size || r->end - r->at < size)
        r->wrong = 1;
    if (r->wrong)
        return 0;
    int64_t begin = (int64_t)r->at;
    r->at += size;
    return begin;
}

static int64_t boolean(reader *r)
{
    uint64_t value = head(r, SIMPLE);
    if (value != 20 && value != 21)
        r->wrong = 1;
    return value == 21;
}

static int is_next_key(const reader *r, uint8_t wanted)
{
    return !r->wrong && r->at < r->end && r->data[r->at] == wanted;
}

/* A typed array: where it begins; its bytes are `*size`, which the first one sets. */
static int64_t array(reader *r, uint64_t tag, uint64_t *size)
{
    if (head(r, TAG) != tag)
        r->wrong = 1;
    if (!*size) {
        reader ahead = *r;
        *size = head(&ahead, BYTES);
        if (ahead.wrong || !*size || *size % 4 || *size / 4 > MG_MAX_SAMPLES)
            r->wrong = 1;
    }
    return r->wrong ? 0 : bytes(r, *size);
}

/* The earliest of a channel's offsets, which must not be those of the grid. */
static uint32_t earliest(reader *r, const uint8_t *offsets, size_t count, int64_t interval_ms)
{
    uint32_t least = UINT32_MAX;
    int on_grid = 1;
    for (size_t k = 0; k < count; k++) {
        uint32_t offset = mg_uint32_at(offsets, k);
        on_grid &= offset == (uint64_t)k * (uint64_t)interval_ms;
        if (offset < least)
            least = offset;
    }
    if (on_grid)
        r->wrong = 1;
    return least;
}

/* One channel; returns its earliest offset. */
static uint32_t channel(reader *r, int64_t *out, int64_t interval_ms)
{
    uint64_t pairs = head(r, MAP), size = 0;
    if (pairs != 7 && pairs != 8)
        r->wrong = 1;
    key(r, 0);
    out[MG_NUMBER] = number(r, MG_MAX_CHANNEL);
    key(r, 1);
    out[MG_ROLE] = number(r, 4);
    key(r, 2);
    out[MG_VOLTAGE] = array(r, 78, &size);
    key(r, 3);
    out[MG_CURRENT] = array(r, 78, &size);
    out[MG_SAMPLES] = (int64_t)(size / 4);
    out[MG_OFFSETS] = 0;
    uint32_t least = 0;
    if (pairs == 8) {
        key(r, 4);
        out[MG_OFFSETS] = array(r, 70, &size);
        if (!r->wrong)
            least = earliest(r, r->data + out[MG_OFFSETS], size / 4, interval_ms);
    }
    key(r, 5);
    out[MG_REGISTER_MWS] = number(r, MG_MAX_REGISTER);
    key(r, 6);
    out[MG_REVERSE_MWS] = number(r, MG_MAX_REGISTER);
    key(r, 7);
    out[MG_GAP_MS] = number(r, MG_MAX_REGISTER);
    return least;
}

static void work(reader *r, int64_t *values, int64_t *nonces)
{
    if (head(r, MAP) != 3)
        r->wrong = 1;
    key(r, 0);
    values[MG_BEACON] = number(r, MG_MAX_SEQ);
    key(r, 1);
    int64_t nbits = values[MG_NBITS] = number(r, UINT32_MAX);
    int64_t exponent = nbits >> 24;
    if (exponent < 3 || exponent > 32 || !(nbits & 0x7fffff) || nbits & 0x800000)
        r->wrong = 1;
    key(r, 2);
    uint64_t count = head(r, ARRAY);
    if (count < 1 || count > MG_MAX_NONCES)
        r->wrong = 1;
    for (uint64_t k = 0; !r->wrong && k < count; k++) {
        nonces[k] = number(r, UINT32_MAX);
        if (k && nonces[k] <= nonces[k - 1])
            r->wrong = 1;
    }
    values[MG_NONCES] = (int64_t)count;
}

static void health(reader *r, int64_t *values)
{
    uint64_t pairs = head(r, MAP);
    values[MG_HEALTH] = 0;
    for (int k = 0; k < 6 && pairs; k++) {
        if (!is_next_key(r, (uint8_t)k))
            continue;
        key(r, (uint64_t)k);
        int64_t *value = values + MG_HEALTH_VALUES + k;
        if (k == 4)
            *value = boolean(r);
        else if (k == 0 && r->at < r->end && r->data[r->at] >> 5 == NEGATIVE) {
            uint64_t below = head(r, NEGATIVE);
            if (below > MAX_INT64)
                r->wrong = 1;
            *value = r->wrong ? 0 : -1 - (int64_t)below;
        } else
            *value = number(r, MAX_INT64);
        values[MG_HEALTH] |= 1 << k;
        pairs--;
    }
    if (pairs)
        r->wrong = 1;
}

/* Fields 0 to 10; returns how many numbers they are. */
static size_t payload(reader *r, int64_t *values)
{
    uint64_t pairs = head(r, MAP);
    if (pairs < 9 || pairs > 11)
        r->wrong = 1;
    key(r, 0);
    key(r, 1); /* the version */
    key(r, 1);
    values[MG_SEQ] = number(r, MG_MAX_SEQ);
    key(r, 2);
    values[MG_PREV] = bytes(r, 32);
    key(r, 3);
    values[MG_BOOT] = bytes(r, 16);
    key(r, 4);
    values[MG_T0_MS] = number(r, MG_MAX_WALL_MS);
    key(r, 5);
    values[MG_T0_BOOT_MS] = number(r, MG_MAX_BOOT_MS);
    key(r, 6);
    uint64_t clock = head(r, MAP);
    if (clock != 1 && clock != 2)
        r->wrong = 1;
    key(r, 0);
    values[MG_SYNCHRONISED] = boolean(r);
    values[MG_CLOCK_ERROR_MS] = -1;
    if (clock == 2) {
        key(r, 1);
        values[MG_CLOCK_ERROR_MS] = number(r, UINT32_MAX);
    }
    key(r, 7);
    int64_t interval_ms = values[MG_INTERVAL_MS] = number(r, MG_MAX_INTERVAL_MS);
    key(r, 8);
    uint64_t channels = head(r, ARRAY);
    if (r->wrong || channels > MG_COMMON_CHANNELS)
        return 0;
    int64_t *out = values + MG_HEAD_VALUES;
    uint32_t least = UINT32_MAX;
    for (uint64_t k = 0; k < channels; k++) {
        uint32_t begin = channel(r, out, interval_ms);
        if (begin < least)
            least = begin;
        if (k && out[MG_NUMBER] <= out[MG_NUMBER - MG_CHANNEL_VALUES])
            r->wrong = 1;
        if (r->wrong)
            return 0;
        out += MG_CHANNEL_VALUES;
    }
    if (channels && least)
        return 0;
    values[MG_CHANNELS] = (int64_t)channels;
    values[MG_NONCES] = values[MG_BEACON] = values[MG_NBITS] = 0;
    values[MG_HEALTH] = -1;
    memset(values + MG_HEALTH_VALUES, 0, 6 * sizeof *values);
    pairs -= 9;
    if (pairs && is_next_key(r, 9)) {
        key(r, 9);
        work(r, values, out);
        pairs--;
    }
    if (pairs && is_next_key(r, 10)) {
        key(r, 10);
        health(r, values);
        pairs--;
    }
    if (pairs || r->at != r->end)
        return 0;
    return (size_t)(out - values) + (size_t)values[MG_NONCES];
}

size_t mg_read_batch(const uint8_t *message, size_t size, int64_t *values)
{
    /* tag 18, an array of four, the protected header {1: -7, 4: key id} up to the id (RFC 9052 §4.2) */
    static const uint8_t begin[] = {0xd2, 0x84, 0x55, 0xa2, 0x01, 0x26, 0x04, 0x50};
    size_t id_end = sizeof begin + 16;
    if (size < id_end + 1 || memcmp(message, begin, sizeof begin) || message[id_end] != 0xa0)
        return 0;
    reader outer = {message, id_end + 1, size, 0};
    uint64_t inside = head(&outer, BYTES);
    if (outer.wrong || inside > size - outer.at)
        return 0;
    reader inner = {message, outer.at, outer.at + inside, 0};
    values[MG_PAYLOAD] = (int64_t)outer.at;
    values[MG_PAYLOAD_SIZE] = (int64_t)inside;
    outer.at += inside;
    bytes(&outer, 64);
    if (outer.wrong || outer.at != size)
        return 0;
    size_t count = payload(&inner, values);
    return inner.wrong ? 0 : count;
}
