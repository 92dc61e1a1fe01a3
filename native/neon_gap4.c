/* Four hashes with a quarter of the scratchpad, 32 KiB each: the smallest shared caches. */
#ifdef __aarch64__
#define NAME neon_gap4
#define TARGET unused
#define LANES 4
#define GROUPS 4
#define GAP 4
#include "diagonal.h"
#else
typedef int mg_not_on_this_machine;
#endif
