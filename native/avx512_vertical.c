/* Thirty-two hashes: two sets of sixteen. The winner where a vector operation takes one cycle (Intel). */
#ifdef __x86_64__
#define NAME avx512_vertical
#define TARGET target("avx512f,avx512bw,avx512dq,avx512vl")
#define LANES 16
#define SETS 2
#define NARROW &mg_avx512_diagonal, 8
#include "scrypt.h"
extern const mg_kernel mg_avx512_diagonal;
#define SCALAR 0
#include "vertical.h"
#else
typedef int mg_not_on_this_machine;
#endif
