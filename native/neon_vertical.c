/* Four hashes side by side. */
#ifdef __aarch64__
#define NAME neon_vertical
#define TARGET unused
#define LANES 4
#define SETS 1
#define SCALAR 0
#include "vertical.h"
#else
typedef int mg_not_on_this_machine;
#endif
