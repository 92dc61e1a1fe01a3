/* Walks the stack from a timer's signal while each kernel runs, as a profiler does; every walk must reach main. */
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>

#include "scrypt.h"

enum { DEPTH = 64, MAIN_BYTES = 1024, WALKS = 100 };

int main(void);
static volatile sig_atomic_t walks, lost;

static void walk(int signal_number) {
    void *frames[DEPTH];
    int depth = backtrace(frames, DEPTH), reached = 0;
    (void)signal_number;
    for (int k = 0; k < depth; k++) {
        reached |= (char *)frames[k] > (char *)main && (char *)frames[k] < (char *)main + MAIN_BYTES;
    }
    walks++, lost += !reached;
}

int main(void) {
    static uint8_t headers[32 * MG_HEADER_BYTES], digests[32 * MG_HASH_BYTES];
    const mg_kernel *kernels[16];
    void *first[1];
    size_t count = mg_kernels(kernels);
    backtrace(first, 1); /* loads the unwinder, which a signal handler must not */
    signal(SIGPROF, walk);
    for (size_t k = 0; k < count; k++) {
        mg_context *context = mg_context_new(kernels[k]->name);
        struct itimerval every = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
        walks = 0;
        setitimer(ITIMER_PROF, &every, NULL);
        while (walks < WALKS) mg_hash_many(context, headers, 32, digests);
        setitimer(ITIMER_PROF, &never, NULL);
        mg_context_free(context);
        if (lost) return printf("%s: %d walks ended before main\n", kernels[k]->name, (int)lost), 1;
        puts(kernels[k]->name);
    }
    return 0;
}
