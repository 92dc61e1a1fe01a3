/* Two hashes with half the scratchpad, 64 KiB each: small shared caches (Pi 3, Zero 2 W). */
#ifdef __aarch64__
#define NAME neon_gap2
#define TARGET unused
#define LANES 4
#define GROUPS 2
#define GAP 2
#include "diagonal.h"
#else
typedef int mg_not_on_this_machine;
#endif
