/* The signed batch as nearly all are: read at once. maxgreen/protocol/batch.py is the reference, and reads the others. */
#ifndef MG_BATCH_H
#define MG_BATCH_H

#include <stddef.h>
#include <stdint.h>

/* The bounds of P-BAT-1 and P-BAT-8. */
#define MG_MAX_SEQ 9007199254740991
#define MG_MAX_WALL_MS 4102444800000
#define MG_MAX_BOOT_MS 315576000000
#define MG_MAX_INTERVAL_MS 900000
#define MG_MAX_REGISTER 4611686018427387903
#define MG_MAX_CHANNEL 65535
#define MG_MAX_SAMPLES 3600
#define MG_MAX_NONCES 64

/* What is read here; more channels are not common. */
#define MG_COMMON_CHANNELS 8
enum {
    MG_PAYLOAD, MG_PAYLOAD_SIZE, MG_SEQ, MG_PREV, MG_BOOT, MG_T0_MS, MG_T0_BOOT_MS, MG_SYNCHRONISED,
    MG_CLOCK_ERROR_MS, /* -1: none */
    MG_INTERVAL_MS, MG_CHANNELS,
    MG_NONCES, /* 0: no work */
    MG_BEACON, MG_NBITS,
    MG_HEALTH, /* a bit for each of its values that is there; -1: no health */
    MG_HEALTH_VALUES,
    MG_HEAD_VALUES = MG_HEALTH_VALUES + 6, /* then the channels, then the nonces */
};
enum {
    MG_NUMBER, MG_ROLE, MG_SAMPLES, MG_VOLTAGE, MG_CURRENT,
    MG_OFFSETS, /* 0: on the grid */
    MG_REGISTER_MWS, MG_REVERSE_MWS, MG_GAP_MS, MG_CHANNEL_VALUES,
};
#define MG_BATCH_VALUES (MG_HEAD_VALUES + MG_COMMON_CHANNELS * MG_CHANNEL_VALUES + MG_MAX_NONCES)

/* Reads a COSE_Sign1 message in deterministic CBOR with fields 0 to 10 into numbers, in the order above; of byte strings
   the number is where they begin. Returns how many numbers, or 0 for a message that is not common or not right. */
size_t mg_read_batch(const uint8_t *message, size_t size, int64_t *values);

#endif
