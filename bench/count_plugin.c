/* A QEMU plugin that counts executed guest instructions by address.
 *
 * Prints one line per translated block: address, instructions in it, times it ran. The
 * declarations are those of QEMU's plugin interface, version 1 (QEMU 7.2 has it), whose
 * header does not come with the emulator. Counts one thread exactly.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*on_translate)(qemu_plugin_id_t,
                                                                struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int op, void *counter,
                                              uint64_t amount);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*on_exit)(qemu_plugin_id_t, void *),
                                    void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);

typedef struct block {
    struct block *next;
    uint64_t address;
    uint64_t n_instructions;
    uint64_t n_runs;
} block;

static block *blocks;

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    block *b = calloc(1, sizeof *b);
    if (b == NULL) {
        exit(1);  // a count with a hole is worse than none
    }
    *b = (block){blocks, qemu_plugin_tb_vaddr(tb), qemu_plugin_tb_n_insns(tb), 0};
    blocks = b;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &b->n_runs, 1);
}

static void on_exit_print(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    for (const block *b = blocks; b != NULL; b = b->next) {
        fprintf(stderr, "%llx %llu %llu\n", (unsigned long long)b->address,
                (unsigned long long)b->n_instructions, (unsigned long long)b->n_runs);
    }
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_exit_print, NULL);
    return 0;
}
