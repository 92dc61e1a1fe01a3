/* Eight hashes: four groups of two. */
#ifdef __x86_64__
#define NAME avx2_diagonal
#define TARGET target("avx2")
#define LANES 8
#define GROUPS 4
#include "diagonal.h"
#else
typedef int mg_not_on_this_machine;
#endif
