/* Sixteen hashes: two sets of eight. */
#ifdef __x86_64__
#define NAME avx2_vertical
#define TARGET target("avx2")
#define LANES 8
#define SETS 2
#define NARROW &mg_avx2_diagonal, 4
#include "scrypt.h"
extern const mg_kernel mg_avx2_diagonal;
#define SCALAR 0
#include "vertical.h"
#else
typedef int mg_not_on_this_machine;
#endif
