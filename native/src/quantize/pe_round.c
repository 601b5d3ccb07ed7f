/* Rounding a matrix onto the grids of a type so that its outputs change least.
 *
 * Rows are independent. A row goes from left to right, block by block: what its columns so far
 * have lost is fed forward (pe_factor.c), the block's grid is chosen for the weights as they then
 * are, and each weight is rounded where the ones before it have moved it. Then come sweeps
 * around: each block's step, where one number is all of its grid, and each weight, move to where
 * the whole row's error e H e^T is least, all others staying as they are.
 */
#include <inttypes.h>

#include "pe_grid.h"
#include "pe_mem.h"
#include "pe_quantizer.h"

#define UNIT PE_SOLVE_COLUMNS
#define ROWS 32u
_Static_assert(UNIT == PE_BLOCK, "a unit of columns is a block of 32");

typedef struct round_job {
    const pe_quantizer *q;
    const pe_rounding *r;
    pe_grid blank;  // of the type
    uint64_t block_bytes;
    struct room *rooms;  // [n_threads]
    double *row_errors;  // [n_rows], e H e^T
    double *row_norms;   // [n_rows], w H w^T
    uint8_t *failed;     // [n_rows]
} round_job;

/* What a thread works in. */
typedef struct room {
    float *errors;   // [ROWS][n_cols], weight less its value
    int8_t *levels;  // [ROWS][n_cols]
    pe_grid *grids;  // [ROWS][blocks of a row]
} room;

static const float *row_of(const round_job *job, uint64_t row) {
    return job->r->weights + row * job->r->n_cols;
}

/* ---- from left to right ------------------------------------------------ */

/* out[k][row] = what the columns before `first` feed forward to column first + k. */
static void feed(const round_job *job, const room *at, float *out, uint64_t first, uint64_t n,
                 uint64_t n_rows) {
    const uint64_t n_cols = job->r->n_cols;
    pe_dot_rows(job->q, out, ROWS, at->errors, n_cols, n_rows, job->r->factor + first * n_cols,
                n_cols, n, first);
}

/* Rounds columns first to first + UNIT of one row, whose fed-forward sums are fed[k * ROWS]. */
static void round_unit(const round_job *job, const float *w, float *errors, int8_t *levels,
                       const pe_grid *grid, const float *fed, uint64_t first, size_t in_block) {
    const uint64_t n_cols = job->r->n_cols;
    for (size_t k = 0; k < UNIT; k++) {
        const float *column = job->r->factor + (first + k) * n_cols + first;
        float sum = fed[k * ROWS];
        for (size_t j = 0; j < k; j++) {
            sum += errors[first + j] * column[j];
        }
        int level;
        const float value = pe_grid_round(grid, in_block + k, w[first + k] + sum, &level);
        levels[first + k] = (int8_t)level;
        errors[first + k] = w[first + k] - value;
    }
}

static void fit_block(const round_job *job, room *at, uint64_t first_row, uint64_t n_rows,
                      uint64_t block) {
    const uint64_t n_cols = job->r->n_cols;
    const uint64_t n = job->blank.n_weights;
    const uint64_t first = block * n;
    float fed[PE_SUPER_BLOCK * ROWS];
    float cost[PE_SUPER_BLOCK];
    feed(job, at, fed, first, n, n_rows);
    for (uint64_t k = 0; k < n; k++) {
        const float root = job->r->factor[(first + k) * (n_cols + 1)];
        cost[k] = root * root;
    }
    for (uint64_t i = 0; i < n_rows; i++) {
        float moved[PE_SUPER_BLOCK];
        const float *w = row_of(job, first_row + i) + first;
        for (uint64_t k = 0; k < n; k++) {
            moved[k] = w[k] + fed[k * ROWS + i];
        }
        pe_grid *grid = &at->grids[i * (n_cols / n) + block];
        *grid = job->blank;
        if (!pe_grid_fit(grid, job->blank.dtype, moved, cost)) {
            *grid = job->blank;
            job->failed[first_row + i] = 1;
        }
    }
}

static void round_rows(const round_job *job, room *at, uint64_t first_row, uint64_t n_rows) {
    const uint64_t n_cols = job->r->n_cols;
    const uint64_t n = job->blank.n_weights;
    float fed[UNIT * ROWS];
    for (uint64_t block = 0; block < n_cols / n; block++) {
        fit_block(job, at, first_row, n_rows, block);
        for (size_t in_block = 0; in_block < n; in_block += UNIT) {
            const uint64_t first = block * n + in_block;
            feed(job, at, fed, first, UNIT, n_rows);
            for (uint64_t i = 0; i < n_rows; i++) {
                round_unit(job, row_of(job, first_row + i), at->errors + i * n_cols,
                           at->levels + i * n_cols, &at->grids[i * (n_cols / n) + block], fed + i,
                           first, in_block);
            }
        }
    }
}

/* ---- sweeps ------------------------------------------------------------ */

/* Where a row's error pulls a unit of its columns: gradient[k] = (e H)[first + k]. */
typedef struct pull {
    float gradient[UNIT];
    const float *h;  // row `first` of H, at column `first`
    uint64_t stride;
    float *errors;
    int8_t *levels;
} pull;

/* Column k's value moves by `by`: its error and all gradients follow. */
static void move_column(pull *p, size_t k, float by) {
    p->errors[k] -= by;
    for (size_t j = 0; j < UNIT; j++) {
        p->gradient[j] -= by * p->h[k * p->stride + j];
    }
}

/* The step that is best for the levels as they are; kept where fp16 lets it help. */
static void move_step(pe_grid *grid, pull *p) {
    double pulled = 0.0;
    double bent = 0.0;
    for (size_t k = 0; k < UNIT; k++) {
        const double level = p->levels[k];
        double sum = 0.0;
        for (size_t j = 0; j < UNIT; j++) {
            sum += (double)p->h[k * p->stride + j] * p->levels[j];
        }
        pulled += level * (double)p->gradient[k];
        bent += level * sum;
    }
    pe_grid moved = *grid;
    const float wanted = bent > 0.0 ? grid->step[0] + (float)(pulled / bent) : grid->step[0];
    moved.d = pe_f16_from_f32(wanted);
    const double by = (double)pe_f16_to_f32(moved.d) - (double)grid->step[0];
    if ((moved.d & 0x7fffu) == 0 || (moved.d & 0x7c00u) == 0x7c00u ||
        !(by * (2.0 * pulled - by * bent) > 0.0)) {
        return;
    }
    pe_grid_derive(&moved);
    for (size_t k = 0; k < UNIT; k++) {
        const float before = pe_grid_value(grid, k, p->levels[k]);
        move_column(p, k, pe_grid_value(&moved, k, p->levels[k]) - before);
    }
    *grid = moved;
}

static void move_levels(const pe_grid *grid, pull *p, size_t in_block) {
    for (size_t k = 0; k < UNIT; k++) {
        const float cost = p->h[k * p->stride + k];
        if (!(cost > 0.0f)) {
            continue;
        }
        const float before = pe_grid_value(grid, in_block + k, p->levels[k]);
        int level;
        const float after =
            pe_grid_round(grid, in_block + k, before + p->gradient[k] / cost, &level);
        if (level != p->levels[k]) {
            p->levels[k] = (int8_t)level;
            move_column(p, k, after - before);
        }
    }
}

static bool has_one_step(const pe_grid *grid) {
    return grid->n_weights == UNIT && !grid->has_min && grid->dtype != PE_DTYPE_MXFP4;
}

static void sweep_rows(const round_job *job, room *at, uint64_t n_rows) {
    const uint64_t n_cols = job->r->n_cols;
    const uint64_t n = job->blank.n_weights;
    float gradients[UNIT * ROWS];
    for (uint64_t first = 0; first < n_cols; first += UNIT) {
        const float *h = job->r->moments + first * n_cols;
        pe_dot_rows(job->q, gradients, ROWS, at->errors, n_cols, n_rows, h, n_cols, UNIT, n_cols);
        for (uint64_t i = 0; i < n_rows; i++) {
            pull p = {.h = h + first,
                      .stride = n_cols,
                      .errors = at->errors + i * n_cols + first,
                      .levels = at->levels + i * n_cols + first};
            for (size_t k = 0; k < UNIT; k++) {
                p.gradient[k] = gradients[k * ROWS + i];
            }
            pe_grid *grid = &at->grids[i * (n_cols / n) + first / n];
            if (has_one_step(grid)) {
                move_step(grid, &p);
            }
            move_levels(grid, &p, first % n);
        }
    }
}

/* ---- the end ----------------------------------------------------------- */

/* sums[row] = rows x H x^T, x being n_rows rows of n_cols. */
static void measure(const round_job *job, double *sums, const float *x, uint64_t n_rows) {
    const uint64_t n_cols = job->r->n_cols;
    float products[UNIT * ROWS];
    for (uint64_t i = 0; i < n_rows; i++) {
        sums[i] = 0.0;
    }
    for (uint64_t first = 0; first < n_cols; first += UNIT) {
        pe_dot_rows(job->q, products, ROWS, x, n_cols, n_rows, job->r->moments + first * n_cols,
                    n_cols, UNIT, n_cols);
        for (uint64_t i = 0; i < n_rows; i++) {
            for (size_t k = 0; k < UNIT; k++) {
                sums[i] += (double)x[i * n_cols + first + k] * (double)products[k * ROWS + i];
            }
        }
    }
}

static void encode_rows(const round_job *job, const room *at, uint64_t first_row, uint64_t n_rows) {
    const uint64_t n_cols = job->r->n_cols;
    const uint64_t n_blocks = n_cols / job->blank.n_weights;
    uint8_t *out = (uint8_t *)job->r->out + first_row * n_blocks * job->block_bytes;
    for (uint64_t i = 0; i < n_rows * n_blocks; i++) {
        pe_grid_encode(out + i * job->block_bytes, &at->grids[i],
                       at->levels + i * job->blank.n_weights);
    }
}

static void round_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    const round_job *job = arg;
    room *at = &job->rooms[i_thread];
    const uint64_t first_row = (uint64_t)i_chunk * ROWS;
    const uint64_t n_rows = PE_MIN(ROWS, job->r->n_rows - first_row);
    round_rows(job, at, first_row, n_rows);
    for (uint32_t i = 0; i < job->r->n_sweeps; i++) {
        sweep_rows(job, at, n_rows);
    }
    encode_rows(job, at, first_row, n_rows);
    measure(job, job->row_errors + first_row, at->errors, n_rows);
    measure(job, job->row_norms + first_row, row_of(job, first_row), n_rows);
}

static pe_status check_rounding(const round_job *job, pe_error *err) {
    const pe_rounding *r = job->r;
    if (r->n_cols == 0 || r->n_cols % job->blank.n_weights != 0) {
        return pe_fail(err, PE_ERR_ARG,
                       "%s: expected rows of whole blocks of %d weights, found rows of %" PRIu64,
                       pe_dtype_find(job->blank.dtype)->info.name, (int)job->blank.n_weights,
                       r->n_cols);
    }
    for (uint64_t i = 0; i < r->n_rows * r->n_cols; i++) {
        if (!pe_f32_is_finite(r->weights[i])) {
            return pe_fail(err, PE_ERR_NUMERIC, "weight %" PRIu64 ": expected a number, found %g",
                           i, (double)r->weights[i]);
        }
    }
    return PE_OK;
}

static pe_status take_rooms(round_job *job, uint32_t n_threads, pe_error *err) {
    const pe_rounding *r = job->r;
    bool ok = true;
    job->rooms = pe_mem_zalloc(n_threads, sizeof *job->rooms);
    job->row_errors = pe_mem_zalloc(r->n_rows, sizeof *job->row_errors);
    job->row_norms = pe_mem_zalloc(r->n_rows, sizeof *job->row_norms);
    job->failed = pe_mem_zalloc(r->n_rows, sizeof *job->failed);
    for (uint32_t i = 0; i < n_threads && job->rooms != NULL; i++) {
        room *at = &job->rooms[i];
        at->errors = pe_mem_zalloc(ROWS * r->n_cols, sizeof *at->errors);
        at->levels = pe_mem_zalloc(ROWS * r->n_cols, sizeof *at->levels);
        at->grids = pe_mem_zalloc(ROWS * (r->n_cols / job->blank.n_weights), sizeof *at->grids);
        ok = ok && at->errors != NULL && at->levels != NULL && at->grids != NULL;
    }
    if (!ok || job->rooms == NULL || job->row_errors == NULL || job->row_norms == NULL ||
        job->failed == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "rounding: no memory for rows of %" PRIu64, r->n_cols);
    }
    return PE_OK;
}

static void free_rooms(round_job *job, uint32_t n_threads) {
    for (uint32_t i = 0; i < n_threads && job->rooms != NULL; i++) {
        pe_mem_free(job->rooms[i].errors);
        pe_mem_free(job->rooms[i].levels);
        pe_mem_free(job->rooms[i].grids);
    }
    pe_mem_free(job->rooms);
    pe_mem_free(job->row_errors);
    pe_mem_free(job->row_norms);
    pe_mem_free(job->failed);
}

pe_status pe_quantizer_round(pe_quantizer *q, pe_rounding *rounding, pe_error *err) {
    round_job job = {.q = q, .r = rounding};
    pe_dtype_info info;
    PE_TRY(pe_dtype_describe(&info, rounding->dtype, err));
    if (rounding->struct_bytes != sizeof *rounding || !pe_grid_init(&job.blank, rounding->dtype)) {
        return pe_fail(err, PE_ERR_ARG, "rounding: expected a type of blocks, found %s", info.name);
    }
    job.block_bytes = info.block_bytes;
    PE_TRY(check_rounding(&job, err));
    const uint32_t n_threads = pe_pool_n_threads(q->pool);
    pe_status status = take_rooms(&job, n_threads, err);
    if (status == PE_OK) {
        pe_pool_run(q->pool, round_chunk, &job, (uint32_t)pe_ceil_div(rounding->n_rows, ROWS));
    }
    rounding->error = rounding->norm = 0.0;
    for (uint64_t i = 0; i < rounding->n_rows && status == PE_OK; i++) {
        rounding->error += job.row_errors[i];
        rounding->norm += job.row_norms[i];
        if (job.failed[i] != 0) {
            status = pe_fail(err, PE_ERR_NUMERIC,
                             "row %" PRIu64 ": expected a %s scale that fits fp16, found a larger"
                             " one",
                             i, info.name);
        }
    }
    free_rooms(&job, n_threads);
    return status;
}
