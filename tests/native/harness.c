/* Compares every kernel of this processor with known digests: harness FILE MAX_BATCH, FILE = (header, digest)...
 * Built with sanitizers, by several compilers and for other processors, where Python is not.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scrypt.h"

enum { PAIR = MG_HEADER_BYTES + MG_HASH_BYTES, OFFSETS = 64 };

static int failures;

static void expect(int right, const char *kernel, const char *what, size_t n) {
    if (right) return;
    failures++;
    fprintf(stderr, "%s: %s %zu is wrong\n", kernel, what, n);
}

/* Exactly `bytes` bytes at an address that is `offset` above a multiple of 64, so that a sanitizer sees one more. */
static uint8_t *place(void **block, size_t bytes, size_t offset) {
    *block = calloc(1, bytes + offset);
    return (uint8_t *)*block + offset;
}

static void check_batch(mg_context *context, const char *name, const uint8_t *pairs, size_t count, size_t offset) {
    void *in_block, *out_block, *target_block, *ok_block;
    uint8_t *in = place(&in_block, count * MG_HEADER_BYTES, offset);
    uint8_t *out = place(&out_block, count * MG_HASH_BYTES, offset);
    uint8_t *targets = place(&target_block, count * MG_HASH_BYTES, offset), *ok = place(&ok_block, count, offset);
    for (size_t k = 0; k < count; k++) {
        memcpy(in + k * MG_HEADER_BYTES, pairs + k * PAIR, MG_HEADER_BYTES);
        memcpy(targets + k * MG_HASH_BYTES, pairs + k * PAIR + MG_HEADER_BYTES, MG_HASH_BYTES);
        if (k % 3 == 1) targets[k * MG_HASH_BYTES + 31] = 0; /* too hard, unless the digest ends in zero */
    }
    mg_hash_many(context, in, count, out);
    mg_verify_many(context, in, targets, count, ok);
    for (size_t k = 0; k < count; k++) {
        const uint8_t *digest = pairs + k * PAIR + MG_HEADER_BYTES;
        expect(memcmp(out + k * MG_HASH_BYTES, digest, MG_HASH_BYTES) == 0, name, "digest", k);
        expect(ok[k] == (k % 3 != 1 || digest[31] == 0), name, "verdict", k);
    }
    free(in_block), free(out_block), free(target_block), free(ok_block);
}

static void check_mining(mg_context *context, const char *name, const uint8_t *header, const uint8_t *digest) {
    uint32_t own = (uint32_t)header[76] | (uint32_t)header[77] << 8 | (uint32_t)header[78] << 16 | (uint32_t)header[79] << 24;
    uint32_t nonce = 0;
    uint64_t next = 0;
    expect(mg_mine(context, header, digest, own, own, &nonce, &next) == MG_FOUND, name, "share", 0);
    expect(nonce == own && next == (uint64_t)own + 1, name, "nonce", own);
    const uint8_t none[MG_HASH_BYTES] = {0};
    expect(mg_mine(context, header, none, 0xffffffff - 40, 0xffffffff, &nonce, &next) == MG_RANGE_DONE, name, "range", 0);
    expect(next == 1ull << 32 && mg_hashes(context) == 42, name, "last nonce", (size_t)next);
}

int main(int arguments, char **names) {
    if (arguments != 3) return 2;
    FILE *file = fopen(names[1], "rb");
    size_t most = strtoul(names[2], NULL, 10), count = 0;
    uint8_t *pairs = malloc(1 << 24);
    if (!file || !pairs) return 2;
    count = fread(pairs, PAIR, (1 << 24) / PAIR, file);
    fclose(file);
    const mg_kernel *kernels[16];
    size_t found = mg_kernels(kernels);
    for (size_t k = 0; k < found; k++) {
        const char *name = kernels[k]->name;
        expect(mg_self_test(name) == (strcmp(name, "broken") != 0), name, "self-test", 0);
        if (strcmp(name, "broken") == 0) continue;
        mg_context *context = mg_context_new(name);
        for (size_t size = 1; size <= most && size <= count; size++) {
            check_batch(context, name, pairs + (count - size) / 2 * PAIR, size, size % OFFSETS);
        }
        for (size_t done = 0; most > 50 && done < count; done += 1000) {
            check_batch(context, name, pairs + done * PAIR, count - done < 1000 ? count - done : 1000, 0);
        }
        check_mining(context, name, pairs, pairs + MG_HEADER_BYTES);
        mg_context_free(context);
        printf("%s\n", name);
    }
    expect(mg_context_new("none") == NULL, "none", "kernel", 0);
    expect(mg_self_test("none") == -1, "none", "self-test", 0);
    free(pairs);
    return failures != 0;
}
