/* Twenty-four hashes: six groups of four. The winner where a vector operation takes two cycles (AMD Zen 5). */
#ifdef __x86_64__
#define NAME avx512_diagonal
#define TARGET target("avx512f,avx512bw,avx512dq,avx512vl")
#define LANES 16
#define GROUPS 6
#include "diagonal.h"
#else
typedef int mg_not_on_this_machine;
#endif
