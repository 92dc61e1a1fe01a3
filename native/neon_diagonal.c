/* Four hashes, one to a register. */
#ifdef __aarch64__
#define NAME neon_diagonal
#define TARGET unused
#define LANES 4
#define GROUPS 4
#include "diagonal.h"
#else
typedef int mg_not_on_this_machine;
#endif
