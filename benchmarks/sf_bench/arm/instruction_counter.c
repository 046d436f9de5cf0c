/* SplitFrozen instruction counter: a plugin for QEMU's user-mode emulation of aarch64.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Counts the instructions a program executes, all and by class, and writes a line of running totals to FILE whenever the
 * program calls getppid(): the caller's marker. One thread only: the additions are not atomic.
 *
 *   cc -O2 -shared -fPIC -o libinstruction_counter.so instruction_counter.c
 *   qemu-aarch64 -plugin ./libinstruction_counter.so,out=FILE -L ROOT PROGRAM
 *
 * Declared here is what is used of version 1 of QEMU's plugin interface (QEMU 6.0 to 8.2; docs/devel/tcg-plugins.rst),
 * because distributions ship no header. Instruction patterns: Arm Architecture Reference Manual, C4.1. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 = 0 };
typedef void (*on_translation)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_syscall)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);

int qemu_plugin_version = 1;

enum { DOT8, MMLA8, MULTIPLY_WIDE, FMA, OTHER, CLASSES };
static const char *const NAMES[CLASSES] = {"dot8", "mmla8", "multiply_wide", "fma", "other"};
static const struct { uint32_t mask, pattern; int kind; } PATTERNS[] = {
    {0xbf20fc00, 0x0e009400, DOT8}, {0xbf20fc00, 0x2e009400, DOT8},  /* SDOT, UDOT */
    {0xbf00f400, 0x0f00e000, DOT8}, {0xbf00f400, 0x2f00e000, DOT8},  /* the same, by element */
    {0xbfe0fc00, 0x0e809c00, DOT8},                                  /* USDOT */
    {0xbfc0f400, 0x0f80f000, DOT8}, {0xbfc0f400, 0x0f00f000, DOT8},  /* USDOT, SUDOT by element */
    {0xffe0fc00, 0x4e80a400, MMLA8}, {0xffe0fc00, 0x6e80a400, MMLA8}, {0xffe0fc00, 0x4e80ac00, MMLA8}, /* S, U, USMMLA */
    {0x9f20fc00, 0x0e208000, MULTIPLY_WIDE}, {0x9f20fc00, 0x0e20a000, MULTIPLY_WIDE}, /* SMLAL, SMLSL and unsigned */
    {0x9f20fc00, 0x0e20c000, MULTIPLY_WIDE},                                          /* SMULL and unsigned */
    {0x9f00f400, 0x0f002000, MULTIPLY_WIDE}, {0x9f00f400, 0x0f00a000, MULTIPLY_WIDE}, /* SMLAL, SMULL by element */
    {0xbf20fc00, 0x0e20cc00, FMA}, {0xbf80b400, 0x0f801000, FMA},    /* FMLA, FMLS; by element */
    {0xbf60fc00, 0x0e400c00, FMA}, {0xbfc0b400, 0x0f001000, FMA},    /* the same in fp16 */
    {0xff000000, 0x1f000000, FMA},                                   /* FMADD and its kin, scalar */
};
static uint64_t counts[CLASSES];
static FILE *out;

static int kind_of(uint32_t word)
{
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++)
        if ((word & PATTERNS[i].mask) == PATTERNS[i].pattern)
            return PATTERNS[i].kind;
    return OTHER;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    uint64_t here[CLASSES] = {0};
    size_t instructions = qemu_plugin_tb_n_insns(block);
    (void)id;
    for (size_t i = 0; i < instructions; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        here[kind_of(word)]++;
    }
    for (int kind = 0; kind < CLASSES; kind++)
        if (here[kind])
            qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &counts[kind], here[kind]);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != 173) /* getppid on aarch64 */
        return;
    fputs("mark", out);
    for (int kind = 0; kind < CLASSES; kind++)
        fprintf(out, " %s=%" PRIu64, NAMES[kind], counts[kind]);
    fputc('\n', out);
    fflush(out);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w")))
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
