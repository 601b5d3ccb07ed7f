#define _GNU_SOURCE
#include "pe_resident.h"

#include <inttypes.h>
#include <stdio.h>

#include "pe_map.h"
#include "pe_mem.h"
#include "pe_ram.h"

/* Of what is available at open, so much may become strips: the rest is for keys and values,
 * scratch and whatever else the machine does, and is left free later, too. */
#define MAX_SHARE_PERCENT 75u

/* Rows that one thread interleaves at a time; whole strips. */
#define CHUNK_ROWS 64u

#define MEGABYTES(n) ((n) / 1000000u)

/* ---- which weights ---------------------------------------------------- */

/* A product of at least one full strip gains; a single row is a vector. Stacked experts
 * stay where they are: a token reads few of them. */
static bool gains(const pe_weight *weight, const pe_kernels *kernels) {
    return weight->data != NULL && weight->n_stacked == 1 && weight->n_rows >= PE_STRIP_ROWS &&
           kernels->fast_strips[weight->dtype];
}

static void add_weight(pe_resident *resident, pe_weight *weight, const pe_kernels *kernels) {
    if (!gains(weight, kernels)) {
        return;
    }
    if (resident->weights != NULL) {
        resident->weights[resident->n_weights] = weight;
    }
    resident->n_weights++;
    resident->n_bytes += pe_strip_bytes(weight->n_rows, weight->row_bytes);
}

/* Counts the weights; once there is room for them, lists them too. */
static void list_weights(pe_resident *resident, pe_model *model, const pe_kernels *kernels) {
    resident->n_weights = 0;
    resident->n_bytes = 0;
    for (uint32_t layer = 0; layer < model->hparams.n_layers; layer++) {
        for (size_t slot = 0; slot < PE_W_COUNT; slot++) {
            add_weight(resident, &model->layers[layer][slot], kernels);
        }
    }
    add_weight(resident, &model->shared[PE_W_PLE_PROJ], kernels);
    add_weight(resident, &model->shared[PE_W_OUTPUT], kernels);
}

/* ---- deciding --------------------------------------------------------- */

#define BECAUSE(resident, ...) snprintf((resident)->why, sizeof(resident)->why, __VA_ARGS__)

static pe_status reserve(pe_resident *resident, pe_model *model, const pe_kernels *kernels,
                         pe_error *err) {
    resident->weights = pe_mem_alloc(resident->n_weights, sizeof(pe_weight *));
    resident->memory = pe_map_anonymous(resident->n_bytes);
    if (resident->weights == NULL || resident->memory == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "resident weights: no addresses for %" PRIu64 " bytes",
                       resident->n_bytes);
    }
    list_weights(resident, model, kernels);
    return PE_OK;
}

/* Reserves what strips of all weights that gain need, or says why not. on: how to say yes. */
static pe_status plan(pe_resident *r, pe_model *model, const pe_kernels *kernels, const char *on,
                      pe_error *err) {
    list_weights(r, model, kernels);
    if (r->n_weights == 0) {
        BECAUSE(r, "off: rows of these types are read as fast by this instruction set");
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "resident weights: expected a matrix that this instruction set reads"
                       " faster interleaved, found none");
    }
    const uint64_t available = pe_ram_available("");
    const uint64_t most = available / 100 * MAX_SHARE_PERCENT;
    if (r->n_bytes > most) {
        BECAUSE(r,
                "off: %" PRIu64 " MB needed, %" PRIu64 " MB may be taken of %" PRIu64
                " MB available",
                MEGABYTES(r->n_bytes), MEGABYTES(most), MEGABYTES(available));
        return pe_fail(err, PE_ERR_NOMEM,
                       "resident weights: expected at most %u %% of the %" PRIu64
                       " bytes available, found %" PRIu64 " needed",
                       MAX_SHARE_PERCENT, available, r->n_bytes);
    }
    BECAUSE(r, "off: the system gave no addresses for %" PRIu64 " MB", MEGABYTES(r->n_bytes));
    PE_TRY(reserve(r, model, kernels, err));
    BECAUSE(r, "%s: %" PRIu64 " MB, of %" PRIu64 " MB available", on, MEGABYTES(r->n_bytes),
            MEGABYTES(available));
    r->n_bytes_free = available - most;
    return PE_OK;
}

static void release(pe_resident *resident) {
    pe_map_free_anonymous(resident->memory, resident->n_bytes);
    pe_mem_free(resident->weights);
    resident->memory = NULL;
    resident->weights = NULL;
    resident->n_bytes = 0;
    resident->n_weights = 0;
}

pe_status pe_resident_init(pe_resident *out_resident, pe_model *model, const pe_ops *ops,
                           pe_resident_mode mode, pe_error *err) {
    const bool must = mode == PE_RESIDENT_ON;
    *out_resident = (pe_resident){0};
    if (mode == PE_RESIDENT_OFF) {
        BECAUSE(out_resident, "off, as asked");
        return PE_OK;
    }
    const pe_status status =
        plan(out_resident, model, &ops->kernels, must ? "on, as asked" : "on", must ? err : NULL);
    if (status != PE_OK) {
        release(out_resident);
    }
    return must ? status : PE_OK;
}

/* ---- making ----------------------------------------------------------- */

typedef struct pack_job {
    const pe_weight *weight;
    uint8_t *out;    // of the weight
    uint64_t first;  // row, a multiple of CHUNK_ROWS
    uint64_t end;
} pack_job;

static void pack_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const pack_job *job = arg;
    const pe_weight *w = job->weight;
    const uint64_t row = job->first + (uint64_t)i_chunk * CHUNK_ROWS;
    const uint64_t at = row * w->row_bytes;
    pe_strip_pack(job->out + at, w->dtype, (const uint8_t *)w->data + at,
                  PE_MIN(job->end - row, (uint64_t)CHUNK_ROWS), w->row_bytes);
}

/* Memory that was there at open may have gone to others: then what is made stays, and no
 * more follows. */
static bool still_fits(pe_resident *resident, uint64_t n_bytes) {
    const uint64_t available = pe_ram_available("");
    if (available > n_bytes && available - n_bytes >= resident->n_bytes_free) {
        return true;
    }
    BECAUSE(resident, "stopped at %" PRIu64 " of %" PRIu64 " MB: %" PRIu64 " MB are available now",
            MEGABYTES(resident->n_used), MEGABYTES(resident->n_bytes), MEGABYTES(available));
    resident->n_weights = resident->n_made;
    return false;
}

void pe_resident_make(pe_resident *resident, const pe_ops *ops, uint32_t share) {
    if (resident->n_made == resident->n_weights ||
        !still_fits(resident, resident->n_bytes / share)) {
        return;
    }
    uint64_t n_left = PE_MAX(resident->n_bytes / share, 1u);
    while (resident->n_made < resident->n_weights && n_left > 0) {
        pe_weight *weight = resident->weights[resident->n_made];
        pack_job job = {weight, resident->memory + resident->n_used, resident->n_rows, 0};
        const uint64_t n_chunks = pe_ceil_div(n_left, CHUNK_ROWS * weight->row_bytes);
        job.end = PE_MIN(job.first + n_chunks * CHUNK_ROWS, weight->n_rows);
        pe_pool_run(ops->pool, pack_chunk, &job,
                    (uint32_t)pe_ceil_div(job.end - job.first, CHUNK_ROWS));
        const uint64_t n_bytes = (job.end - job.first) * weight->row_bytes;
        // Who still reads the rows, as an embedding is read, gets them from the page cache.
        pe_map_forget((const uint8_t *)weight->data + job.first * weight->row_bytes, n_bytes);
        n_left -= PE_MIN(n_left, n_bytes);
        resident->n_rows = job.end;
        if (job.end == weight->n_rows) {
            weight->strips = job.out;
            resident->n_used += pe_strip_bytes(weight->n_rows, weight->row_bytes);
            resident->n_made++;
            resident->n_rows = 0;
        }
    }
}

uint64_t pe_resident_goal(const pe_resident *resident) {
    return resident->n_made == resident->n_weights ? resident->n_used : resident->n_bytes;
}

void pe_resident_free(pe_resident *resident) {
    for (uint32_t i = 0; i < resident->n_made; i++) {
        resident->weights[i]->strips = NULL;
    }
    release(resident);
    resident->n_made = 0;
}
