/* Arrays of samples as they stand in a batch: 32 bits each, little endian (RFC 8746, tags 70 and 78). */
#ifndef MG_SAMPLES_H
#define MG_SAMPLES_H

#include <stddef.h>
#include <stdint.h>

static inline uint32_t mg_uint32_at(const uint8_t *data, size_t k)
{
    const uint8_t *p = data + 4 * k;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline int32_t mg_int32_at(const uint8_t *data, size_t k)
{
    return (int32_t)mg_uint32_at(data, k);
}

#endif
