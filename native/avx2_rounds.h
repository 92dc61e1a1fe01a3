/* Salsa20/8 of eight lanes in AVX2 assembly: compilers keep too few of the 16 words in the 16 registers.
 *
 * Fourteen words and two temporaries fill the registers. Words 8 and 13 lie in memory between the rounds. A quarter
 * round reads its first word a for the last time in its second step, and changes it only in the fourth; its third word
 * c changes in the second step and is last read in the fourth. So from there to there c has the register of a: words 8
 * and 13 those of words 0 and 5 in a column round, those of words 10 and 15 in a row round. What is in memory is read
 * as an operand, early enough before and late enough after that nothing waits for it.
 */
#define X0 "%%ymm0"
#define X1 "%%ymm1"
#define X2 "%%ymm2"
#define X3 "%%ymm3"
#define X4 "%%ymm4"
#define X5 "%%ymm5"
#define X6 "%%ymm6"
#define X7 "%%ymm7"
#define X9 "%%ymm8"
#define X10 "%%ymm9"
#define X11 "%%ymm10"
#define X12 "%%ymm11"
#define X14 "%%ymm12"
#define X15 "%%ymm13"
#define SUM "%%ymm14"
#define BITS "%%ymm15"

#define OP(name, ...) name " " __VA_ARGS__ "\n"
#define KEPT(k) #k "*32(%[kept])"
#define KEEP(k, register) OP("vmovdqa", register "," KEPT(k))
#define ADD_SHIFT(q, r, n, m)                                                                                          \
    OP("vpaddd", q "," r "," SUM) OP("vpslld", "$" #n "," SUM "," BITS) OP("vpsrld", "$" #m "," SUM "," SUM)

/* p ^= rotl(q + r, n), with n + m = 32; the second form finds p in memory. */
#define STEP_OF(p, q, r, n, m)                                                                                         \
    ADD_SHIFT(q, r, n, m) OP("vpxor", BITS "," p "," p) OP("vpxor", SUM "," p "," p)
#define STEP_KEPT(k, p, q, r, n, m)                                                                                    \
    ADD_SHIFT(q, r, n, m) OP("vpxor", KEPT(k) "," BITS "," BITS) OP("vpxor", SUM "," BITS "," p)
#define STEP(p, q, r, n, m) STEP_OF(X##p, X##q, X##r, n, m)

/* Steps of four quarter rounds take turns, so that none waits for the one before it. */
#define DOUBLE_ROUND                                                                                                   \
    STEP(4, 0, 12, 7, 25) STEP(9, 5, 1, 7, 25) STEP(14, 10, 6, 7, 25) STEP(3, 15, 11, 7, 25)                           \
    STEP_KEPT(8, X0, X4, X0, 9, 23) KEEP(8, X0) STEP_KEPT(13, X5, X9, X5, 9, 23) KEEP(13, X5)                          \
    STEP(2, 14, 10, 9, 23) STEP(7, 3, 15, 9, 23)                                                                       \
    STEP_OF(X12, X0, X4, 13, 19) STEP_OF(X1, X5, X9, 13, 19) STEP(6, 2, 14, 13, 19) STEP(11, 7, 3, 13, 19)             \
    STEP_KEPT(0, X0, X12, X0, 18, 14) STEP_KEPT(5, X5, X1, X5, 18, 14)                                                 \
    STEP(10, 6, 2, 18, 14) KEEP(10, X10) STEP(15, 11, 7, 18, 14) KEEP(15, X15)                                         \
    STEP(1, 0, 3, 7, 25) STEP(6, 5, 4, 7, 25) STEP(11, 10, 9, 7, 25) STEP(12, 15, 14, 7, 25)                           \
    STEP(2, 1, 0, 9, 23) STEP(7, 6, 5, 9, 23)                                                                          \
    STEP_KEPT(8, X10, X11, X10, 9, 23) KEEP(8, X10) STEP_KEPT(13, X15, X12, X15, 9, 23) KEEP(13, X15)                  \
    STEP(3, 2, 1, 13, 19) STEP(4, 7, 6, 13, 19) STEP_OF(X9, X10, X11, 13, 19) STEP_OF(X14, X15, X12, 13, 19)           \
    STEP(0, 3, 2, 18, 14) KEEP(0, X0) STEP(5, 4, 7, 18, 14) KEEP(5, X5)                                                \
    STEP_KEPT(10, X10, X9, X10, 18, 14) STEP_KEPT(15, X15, X14, X15, 18, 14)

#define B(k) #k "*32(%[b])"
#define BEGIN_IN(register, k)                                                                                          \
    OP("vmovdqa", B(k) "," register) OP("vpxor", #k "*32(%[bx])," register "," register) OP("vmovdqa", register "," B(k))
#define BEGIN(k) BEGIN_IN(X##k, k)
#define END_IN(register, k) OP("vpaddd", B(k) "," register "," register) OP("vmovdqa", register "," B(k))
#define END(k) END_IN(X##k, k)

/* b ^= bx; b = salsa20/8(b); there is no scalar hash beside it. */
INLINE void xor_salsa8(vec b[16], const vec bx[16], const uint32_t *c, const uint32_t *cx) {
    vec kept[16];
    int rounds = 4;
    (void)c, (void)cx;
    __asm__ volatile(
        BEGIN(1) BEGIN(2) BEGIN(3) BEGIN(4) BEGIN(6) BEGIN(7) BEGIN(9) BEGIN(10) BEGIN(11) BEGIN(12) BEGIN(14) BEGIN(15)
        BEGIN(0) KEEP(0, X0) BEGIN(5) KEEP(5, X5) BEGIN_IN(BITS, 8) KEEP(8, BITS) BEGIN_IN(BITS, 13) KEEP(13, BITS)
        ".p2align 5\n1:\n"
        DOUBLE_ROUND
        "dec %[rounds]\n jnz 1b\n"
        END(0) END(1) END(2) END(3) END(4) END(5) END(6) END(7) END(9) END(10) END(11) END(12) END(14) END(15)
        OP("vmovdqa", KEPT(8) "," BITS) END_IN(BITS, 8) OP("vmovdqa", KEPT(13) "," BITS) END_IN(BITS, 13)
        : [rounds] "+r"(rounds)
        : [b] "r"(b), [bx] "r"(bx), [kept] "r"(kept)
        : "memory", "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10",
          "ymm11", "ymm12", "ymm13", "ymm14", "ymm15");
}
