/* Four hashes side by side and one in the integer unit, interleaved: out-of-order cores (A72, A76). */
#ifdef __aarch64__
#define NAME neon_mixed
#define TARGET unused
#define LANES 4
#define SETS 1
#define SCALAR 1
#include "vertical.h"
#else
typedef int mg_not_on_this_machine;
#endif
