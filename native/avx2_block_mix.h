/* The block mix of eight lanes, and with SCALAR of one more hash in the integer unit, in AVX2 and x86-64 assembly.
 *
 * Compilers keep too few of the 16 words in the 16 registers, and order the instructions badly. Here a quarter round
 * (a, b, c, d) of the vectors has a register for a, b and d. When c changes, it takes the register of a, which is read
 * for the last time then; when a changes in turn, it takes it back. The other one of both lies in x_kept, and is read
 * as an operand, so late after it was written that nothing waits for it. Four registers are left to work in: two
 * quarter rounds make a step together, in an order that gives both units that shift as much to do.
 *
 * The integer unit has nothing to do meanwhile, so it can compute another hash. Its quarter rounds have registers for
 * a, b and d as well; c stays in z_kept, and in a register for as long as its quarter round takes.
 */
typedef struct {
    vec x[32], x_kept[16];
    uint32_t z[32], z_kept[16]; /* the scalar hash's */
    uint32_t rounds;
} block;

#define OP(name, ...) name " " __VA_ARGS__ "\n"
#if SCALAR
#define Z_OP(...) OP(__VA_ARGS__)
#else
#define Z_OP(...)
#endif

/* vectors, and where they lie in a block */
#define X0 "%ymm0"
#define X1 "%ymm1"
#define X3 "%ymm2"
#define X4 "%ymm3"
#define X5 "%ymm4"
#define X6 "%ymm5"
#define X9 "%ymm6"
#define X10 "%ymm7"
#define X11 "%ymm8"
#define X12 "%ymm9"
#define X14 "%ymm10"
#define X15 "%ymm11"
#define SUM0 "%ymm12"
#define SUM1 "%ymm13"
#define BITS0 "%ymm14"
#define BITS1 "%ymm15"
#define X_AT(k) "(" #k ")*32(%rdi)"
#define X_KEPT(k) "(32+" #k ")*32(%rdi)"

/* the scalar hash's words, as 32 and 64 bits, and where they lie */
#define Z0 "%eax"
#define Z1 "%ebx"
#define Z3 "%ecx"
#define Z4 "%edx"
#define Z5 "%esi"
#define Z6 "%r8d"
#define Z9 "%r9d"
#define Z10 "%r10d"
#define Z11 "%r11d"
#define Z12 "%r12d"
#define Z14 "%r13d"
#define Z15 "%r14d"
#define ZC "%ebp"
#define ZSUM "%r15d"
#define Q0 "%rax"
#define Q1 "%rbx"
#define Q3 "%rcx"
#define Q4 "%rdx"
#define Q5 "%rsi"
#define Q6 "%r8"
#define Q9 "%r9"
#define Q10 "%r10"
#define Q11 "%r11"
#define Q12 "%r12"
#define Q14 "%r13"
#define Q15 "%r14"
#define QC "%rbp"
#define Z_AT(k) "48*32+(" #k ")*4(%rdi)"
#define Z_KEPT(k) "48*32+(32+" #k ")*4(%rdi)"
#define ROUNDS "48*32+48*4(%rdi)"

/* The steps of a scalar quarter round. */
#define ONE_7(a, b, c, d) Z_OP("leal", "(" Q##a "," Q##d ")," ZSUM) Z_OP("roll", "$7," ZSUM) Z_OP("xorl", ZSUM "," Z##b)
#define ONE_9(a, b, c, d)                                                                                              \
    Z_OP("leal", "(" Q##a "," Q##b ")," ZC) Z_OP("roll", "$9," ZC)                                                     \
    Z_OP("xorl", Z_KEPT(c) "," ZC) Z_OP("movl", ZC "," Z_KEPT(c))
#define ONE_13(a, b, c, d) Z_OP("leal", "(" QC "," Q##b ")," ZSUM) Z_OP("roll", "$13," ZSUM) Z_OP("xorl", ZSUM "," Z##d)
#define ONE_18(a, b, c, d) Z_OP("addl", Z##d "," ZC) Z_OP("roll", "$18," ZC) Z_OP("xorl", ZC "," Z##a)

/* A step of two vector quarter rounds, p ^= rotl(q + r, n) with n + m = 32, and two steps of a scalar one. */
#define SHIFT_BOTH(n, m, q0, r0, q1, r1)                                                                               \
    OP("vpaddd", X##q0 "," X##r0 "," SUM0) OP("vpaddd", X##q1 "," X##r1 "," SUM1)                                      \
    OP("vpslld", "$" #n "," SUM0 "," BITS0) OP("vpslld", "$" #n "," SUM1 "," BITS1)                                    \
    OP("vpsrld", "$" #m "," SUM1 "," SUM1) OP("vpsrld", "$" #m "," SUM0 "," SUM0)
#define BOTH(n, m, p0, q0, r0, p1, q1, r1, one, then)                                                                  \
    SHIFT_BOTH(n, m, q0, r0, q1, r1)                                                                                   \
    one                                                                                                                \
    OP("vpxor", BITS0 "," X##p0 "," X##p0) OP("vpxor", BITS1 "," X##p1 "," X##p1)                                      \
    OP("vpxor", SUM0 "," X##p0 "," X##p0) OP("vpxor", SUM1 "," X##p1 "," X##p1)                                        \
    then
/* The same where p is kept, and takes the register of r. */
#define BOTH_TURN(n, m, p0, q0, r0, p1, q1, r1, one, then)                                                             \
    SHIFT_BOTH(n, m, q0, r0, q1, r1)                                                                                   \
    one                                                                                                                \
    OP("vpxor", X_KEPT(p0) "," BITS0 "," BITS0) OP("vpxor", X_KEPT(p1) "," BITS1 "," BITS1)                            \
    OP("vpxor", SUM0 "," BITS0 "," X##r0) OP("vpxor", SUM1 "," BITS1 "," X##r1)                                        \
    OP("vmovdqa", X##r0 "," X_KEPT(p0)) OP("vmovdqa", X##r1 "," X_KEPT(p1))                                            \
    then

/* Four quarter rounds: of the vectors a step of each in turn, of the scalar hash one after another. */
#define ROUND(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)                                                          \
    BOTH(7, 25, b, a, d, f, e, h, ONE_7(a, b, c, d), ONE_9(a, b, c, d))                                                \
    BOTH(7, 25, j, i, l, n, m, p, ONE_13(a, b, c, d), ONE_18(a, b, c, d))                                              \
    BOTH_TURN(9, 23, c, b, a, g, f, e, ONE_7(e, f, g, h), ONE_9(e, f, g, h))                                           \
    BOTH_TURN(9, 23, k, j, i, o, n, m, ONE_13(e, f, g, h), ONE_18(e, f, g, h))                                         \
    BOTH(13, 19, d, a, b, h, e, f, ONE_7(i, j, k, l), ONE_9(i, j, k, l))                                               \
    BOTH(13, 19, l, i, j, p, m, n, ONE_13(i, j, k, l), ONE_18(i, j, k, l))                                             \
    BOTH_TURN(18, 14, a, d, a, e, h, e, ONE_7(m, n, o, p), ONE_9(m, n, o, p))                                          \
    BOTH_TURN(18, 14, i, l, i, m, p, m, ONE_13(m, n, o, p), ONE_18(m, n, o, p))
#define EIGHT_ROUNDS                                                                                                   \
    OP("movl", "$4," ROUNDS)                                                                                           \
    ".p2align 6\n1:\n"                                                                                                 \
    ROUND(0, 4, 8, 12, 5, 9, 13, 1, 10, 14, 2, 6, 15, 3, 7, 11)                                                        \
    ROUND(0, 1, 2, 3, 5, 6, 7, 4, 10, 11, 8, 9, 15, 12, 13, 14)                                                        \
    OP("decl", ROUNDS) OP("jnz", "1b")

/* What goes into the first salsa20/8: words 0..15 ^ words 16..31. The vectors' is computed again for the sum, because
 * stores are scarcer than loads. */
#define INPUT(x, k) OP("vmovdqa", X_AT(k) "," x) OP("vpxor", X_AT(16 + k) "," x "," x)
#define KEEP(k) OP("vmovdqa", X##k "," X_KEPT(k))
#define BEGIN(k) INPUT(X##k, k)
#define BEGIN_KEPT(k) INPUT(SUM0, k) OP("vmovdqa", SUM0 "," X_KEPT(k))
#define LOAD(k) Z_OP("movl", Z_AT(k) "," Z##k)
#define LOAD_KEPT(k)

/* Between them: the first one's sums are words 0..15, and go into the second one with words 16..31. */
#define MIDDLE(k)                                                                                                      \
    INPUT(SUM0, k) OP("vpaddd", SUM0 "," X##k "," X##k) OP("vmovdqa", X##k "," X_AT(k))                                \
    OP("vpxor", X_AT(16 + k) "," X##k "," X##k)                                                                        \
    Z_OP("addl", Z_AT(k) "," Z##k) Z_OP("movl", Z##k "," Z_AT(k)) Z_OP("xorl", Z_AT(16 + k) "," Z##k)
#define MIDDLE_KEPT(k)                                                                                                 \
    INPUT(SUM0, k) OP("vpaddd", X_KEPT(k) "," SUM0 "," SUM0) OP("vmovdqa", SUM0 "," X_AT(k))                           \
    OP("vpxor", X_AT(16 + k) "," SUM0 "," SUM0) OP("vmovdqa", SUM0 "," X_KEPT(k))                                      \
    Z_OP("movl", Z_AT(k) "," ZSUM) Z_OP("addl", Z_KEPT(k) "," ZSUM) Z_OP("movl", ZSUM "," Z_AT(k))                     \
    Z_OP("xorl", Z_AT(16 + k) "," ZSUM) Z_OP("movl", ZSUM "," Z_KEPT(k))

/* After the second one: its sums are words 16..31. The scalar hash's wait for settle(). */
#define END(k)                                                                                                         \
    INPUT(SUM0, k) OP("vpaddd", X##k "," SUM0 "," SUM0) OP("vmovdqa", SUM0 "," X_AT(16 + k))                           \
    Z_OP("movl", Z##k "," Z_KEPT(k))
#define END_KEPT(k) INPUT(SUM0, k) OP("vpaddd", X_KEPT(k) "," SUM0 "," SUM0) OP("vmovdqa", SUM0 "," X_AT(16 + k))

#define EACH(DO)                                                                                                       \
    DO(0) DO(1) DO##_KEPT(2) DO(3) DO(4) DO(5) DO(6) DO##_KEPT(7)                                                      \
    DO##_KEPT(8) DO(9) DO(10) DO(11) DO(12) DO##_KEPT(13) DO(14) DO(15)
#define KEEP_TURNING KEEP(0) KEEP(5) KEEP(10) KEEP(15)

/* The caller's registers, said to whoever unwinds the stack meanwhile. */
#define PUSH(q) Z_OP("pushq", q) Z_OP(".cfi_adjust_cfa_offset", "8") Z_OP(".cfi_rel_offset", q ",0")
#define POP(q) Z_OP("popq", q) Z_OP(".cfi_adjust_cfa_offset", "-8") Z_OP(".cfi_restore", q)

_Static_assert(offsetof(block, x_kept) == 32 * 32 && offsetof(block, z) == 48 * 32, "as in X_KEPT and Z_AT");
_Static_assert(offsetof(block, rounds) == 48 * 32 + 48 * 4, "as in ROUNDS");

#define MIX GLUE(GLUE(mg_, NAME), _mix)
void MIX(block *b) __attribute__((visibility("hidden")));
__asm__(
    ".pushsection .text\n.p2align 6\n.globl " TEXT(MIX) "\n.hidden " TEXT(MIX) "\n.type " TEXT(MIX) ",@function\n"
    TEXT(MIX) ":\n.cfi_startproc\n"
    PUSH(Q1) PUSH(QC) PUSH(Q12) PUSH(Q14) PUSH(Q15) PUSH("%r15")
    EACH(BEGIN) KEEP_TURNING EACH(LOAD)
    EIGHT_ROUNDS
    EACH(MIDDLE) KEEP_TURNING
    EIGHT_ROUNDS
    EACH(END)
    POP("%r15") POP(Q15) POP(Q14) POP(Q12) POP(QC) POP(Q1)
    "vzeroupper\nret\n.cfi_endproc\n.size " TEXT(MIX) ",.-" TEXT(MIX) "\n.popsection\n");

INLINE void block_mix(block *b) {
    UNROLL for (int k = 0; SCALAR && k < 16; k += LANES) {
        vec input = load(b->z + k) ^ load(b->z + 16 + k);
        store(b->z + k, input);
        store(b->z_kept + k, input);
    }
    MIX(b);
}

INLINE uint32_t scalar_word_16(const block *b) { return (b->z[16] ^ b->z[0]) + b->z_kept[0]; }

/* Add up the scalar hash's words 16..31: long after the block mix, for whose single words a vector would wait. */
INLINE void settle(block *b) {
    UNROLL for (int k = 0; k < 16; k += LANES) {
        store(b->z + 16 + k, (load(b->z + 16 + k) ^ load(b->z + k)) + load(b->z_kept + k));
    }
}
