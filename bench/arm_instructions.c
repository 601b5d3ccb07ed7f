/* One product of a matrix by some columns, repeated: what bench/arm_instructions.py counts.
 *
 *     program LEVEL TYPE COLUMNS REPEATS
 *
 * Compiled with WITH_GGML it is llama.cpp's product (LEVEL is what its library was built
 * for), without it is ours. Both start from the same floats and the same stored weights and
 * print the length of the result, which shows that they did the same work.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "operands.h"

#define N_ROWS 512
#define N_K 2048
#define CHUNK_ROWS 64  // as one thread of the engine takes them
#define MAX_WEIGHT_BYTES ((size_t)N_ROWS * N_K * 4)

typedef struct product {
    const char *level;
    const char *type;
    size_t n_cols;
    size_t n_repeats;
    const uint8_t *weights;
    const float *x;
    float *out;
} product;

#ifdef WITH_GGML

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

/* Puts the weights where llama.cpp would: into the first special buffer type whose product
 * takes them, which rearranges them, else into plain memory. */
static void place(struct ggml_tensor *w, struct ggml_tensor *product_of_w, const uint8_t *data) {
    ggml_backend_reg_t reg = ggml_backend_cpu_reg();
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(reg, 0);
    const ggml_backend_dev_get_extra_bufts_t extra =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            reg, "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t *types = extra(device);
    for (; types != NULL && *types != NULL && w->data == NULL; types++) {
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(*types, MAX_WEIGHT_BYTES);
        ggml_backend_tensor_alloc(buffer, w, ggml_backend_buffer_get_base(buffer));
        if (!ggml_backend_dev_supports_op(device, product_of_w)) {
            w->data = NULL;
            w->buffer = NULL;
            w->extra = NULL;
        }
    }
    if (w->data == NULL) {
        ggml_backend_buffer_t buffer =
            ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), MAX_WEIGHT_BYTES);
        ggml_backend_tensor_alloc(buffer, w, ggml_backend_buffer_get_base(buffer));
    }
    ggml_backend_tensor_set(w, data, 0, ggml_nbytes(w));
}

static void say_nothing(enum ggml_log_level level, const char *text, void *data) {
    (void)level, (void)text, (void)data;
}

static int multiply(const product *p) {
    ggml_log_set(say_nothing, NULL);
    int type = 0;
    while (type < GGML_TYPE_COUNT && (ggml_type_name((enum ggml_type)type) == NULL ||
                                      strcasecmp(ggml_type_name((enum ggml_type)type), p->type))) {
        type++;
    }
    if (type == GGML_TYPE_COUNT) {
        fprintf(stderr, "llama.cpp: expected a tensor type it has, found %s\n", p->type);
        return 1;
    }
    ggml_backend_t backend = ggml_backend_cpu_init();
    struct ggml_threadpool_params threads = ggml_threadpool_params_default(1);
    ggml_backend_cpu_set_n_threads(backend, 1);
    ggml_backend_cpu_set_threadpool(backend, ggml_threadpool_new(&threads));
    struct ggml_init_params room = {.mem_size = 1 << 20, .no_alloc = true};
    struct ggml_context *ctx = ggml_init(room);
    struct ggml_tensor *w = ggml_new_tensor_2d(ctx, (enum ggml_type)type, N_K, N_ROWS);
    struct ggml_tensor *x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_K, (int64_t)p->n_cols);
    struct ggml_tensor *out = ggml_mul_mat(ctx, w, x);
    place(w, out, p->weights);
    ggml_backend_alloc_ctx_tensors(ctx, backend);
    ggml_backend_tensor_set(x, p->x, 0, ggml_nbytes(x));
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, out);
    for (size_t i = 0; i < p->n_repeats; i++) {
        ggml_backend_graph_compute(backend, graph);
    }
    ggml_backend_tensor_get(out, p->out, 0, ggml_nbytes(out));
    return 0;
}

#else

#include "pe_cpu.h"
#include "pe_kernels.h"

static int multiply(const product *p) {
    pe_isa isa = PE_ISA_SCALAR;
    while (isa <= PE_ISA_I8MM && strcmp(pe_cpu_isa_name(isa), p->level) != 0) {
        isa++;
    }
    uint32_t dtype = 0;
    const pe_dtype_traits *traits = NULL;
    for (; dtype < PE_DTYPE_END; dtype++) {
        traits = pe_dtype_find(dtype);
        if (traits != NULL && strcmp(traits->info.name, p->type) == 0) {
            break;
        }
    }
    if (!pe_cpu_has_isa(isa) || dtype == PE_DTYPE_END || traits->acts != PE_ACTS_Q8) {
        fprintf(stderr,
                "expected a level of this processor and a quantized type, found %s and %s\n",
                p->level, p->type);
        return 1;
    }
    pe_kernels kernels;
    pe_kernels_init(&kernels, isa);
    const size_t row_bytes = N_K / traits->info.block_weights * traits->info.block_bytes;
    const size_t act_bytes = N_K / PE_BLOCK * sizeof(pe_act_block);
    pe_act_block *acts = malloc(act_bytes * p->n_cols);
    if (acts == NULL) {
        return 1;
    }
    const pe_matmul_fn product_of = (p->n_cols == 1 ? kernels.matvec : kernels.matmul)[dtype];
    for (size_t i = 0; i < p->n_repeats; i++) {
        kernels.quantize_acts(acts, p->x, N_K * p->n_cols);
        for (size_t r = 0; r < N_ROWS; r += CHUNK_ROWS) {
            product_of(p->out + r, N_ROWS, p->weights + r * row_bytes, row_bytes, CHUNK_ROWS, acts,
                       act_bytes, p->n_cols, N_K);
        }
    }
    free(acts);
    return 0;
}

#endif

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: %s LEVEL TYPE COLUMNS REPEATS\n", argv[0]);
        return 1;
    }
    const size_t n_cols = strtoul(argv[3], NULL, 10);
    uint8_t *weights = malloc(MAX_WEIGHT_BYTES);
    float *x = malloc(sizeof *x * N_K * n_cols);
    float *out = malloc(sizeof *out * N_ROWS * n_cols);
    if (weights == NULL || x == NULL || out == NULL) {
        return 1;
    }
    fill_weights(weights, MAX_WEIGHT_BYTES);
    fill_activations(x, N_K * n_cols);
    const product p = {argv[1], argv[2], n_cols, strtoul(argv[4], NULL, 10), weights, x, out};
    if (multiply(&p) != 0) {
        return 1;
    }
    double sum = 0.0;
    for (size_t i = 0; i < N_ROWS * n_cols; i++) {
        sum += (double)out[i] * (double)out[i];
    }
    printf("%.9g\n", sqrt(sum));
    return 0;
}
