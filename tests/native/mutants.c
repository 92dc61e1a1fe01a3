/* Reads changed batches, each in a block of exactly its size, and sums what was read: mutants FILE COUNT.
 * Built with sanitizers. Prints how many were read.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "lines.h"
#include "meter.h"

static uint64_t state = 88172645463325252u;

static size_t chance(size_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* Marsaglia's xorshift64 */
    return state % below;
}

static void use(const uint8_t *message, const int64_t *values) {
    for (int64_t k = 0; k < values[MG_CHANNELS]; k++) {
        const int64_t *one = values + MG_HEAD_VALUES + k * MG_CHANNEL_VALUES;
        size_t count = (size_t)one[MG_SAMPLES];
        const uint8_t *offsets = message + (one[MG_OFFSETS] ? one[MG_OFFSETS] : one[MG_VOLTAGE]);
        uint64_t sums[MG_SUMS];
        mg_measure(message + one[MG_VOLTAGE], message + one[MG_CURRENT], offsets, count, values[MG_T0_BOOT_MS], NULL,
                   10 * values[MG_INTERVAL_MS], 5000, sums);
        char *lines = malloc(count * (MG_LINE_BYTES + 3));
        mg_sample_lines("a=b", 3, message + one[MG_VOLTAGE], message + one[MG_CURRENT], offsets, count,
                        values[MG_T0_MS], lines);
        free(lines);
    }
}

int main(int arguments, char **names) {
    if (arguments != 3) return 2;
    static uint8_t whole[1 << 17];
    FILE *file = fopen(names[1], "rb");
    size_t size = file ? fread(whole, 1, sizeof whole, file) : 0, read = 0;
    for (size_t left = strtoul(names[2], NULL, 10); left; left--) {
        size_t kept = chance(8) ? size : chance(size + 1);
        uint8_t *message = malloc(kept);
        memcpy(message, whole, kept);
        for (size_t changes = chance(4); kept && changes; changes--) {
            /* the heads are at the beginning, and at the end of the payload */
            size_t at = chance(3) ? chance(kept) : chance(kept < 160 ? kept : 160);
            message[at] = chance(2) ? (uint8_t)chance(256) : message[at] ^ (uint8_t)(1 << chance(8));
        }
        int64_t values[MG_BATCH_VALUES];
        if (mg_read_batch(message, kept, values)) {
            read++;
            use(message, values);
        }
        free(message);
    }
    printf("%zu\n", read);
    return 0;
}
