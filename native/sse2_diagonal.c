/* Four hashes, one to a register: every x86-64 processor has this. */
#ifdef __x86_64__
#define NAME sse2_diagonal
#define TARGET target("sse2")
#define LANES 4
#define GROUPS 4
#include "diagonal.h"
#else
typedef int mg_not_on_this_machine;
#endif
