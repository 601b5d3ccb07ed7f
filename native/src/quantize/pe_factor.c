/* H = R R^T with R upper triangular, a Cholesky factor taken from the last column to the first,
 * and what its columns say about feeding errors forward.
 *
 * With M = R / diag(R), unit upper triangular, and e a row's errors, e H e^T is the sum over
 * columns k of R[k][k]^2 (e_k + sum over j < k of e_j M[j][k])^2: once columns in front of k are
 * rounded, the best place for weight k is w_k + sum e_j M[j][k], e = w - rounded (LDLQ of
 * arXiv:2307.13304, which is the order of GPTQ, arXiv:2210.17323), and R[k][k]^2 is what
 * an error there costs.
 */
#include <math.h>

#include "pe_mem.h"
#include "pe_quantizer.h"

#define N PE_SOLVE_COLUMNS
#define MAX_ATTEMPTS 12

/* A pivot this small beside the mean of the diagonal is rounding's. */
#define MIN_PIVOT 1e-7f

typedef struct factor_job {
    const pe_quantizer *q;
    float *h;  // [n][n]: R grows from the right in the upper triangle, H stays below it
    uint64_t n;
    uint64_t first;  // columns of the block
    uint64_t n_block;
} factor_job;

/* rows[k][i] = what is left of H at row first_row + i, column first + k. */
static void remainders(const factor_job *job, float *rows, uint64_t first_row, uint64_t n_rows) {
    const uint64_t n = job->n;
    const uint64_t behind = job->first + job->n_block;
    pe_dot_rows(job->q, rows, PE_SOLVE_ROWS, job->h + first_row * n + behind, n, n_rows,
                job->h + job->first * n + behind, n, job->n_block, n - behind);
    for (uint64_t k = 0; k < job->n_block; k++) {
        for (uint64_t i = 0; i < n_rows; i++) {
            rows[k * PE_SOLVE_ROWS + i] =
                job->h[(first_row + i) * n + job->first + k] - rows[k * PE_SOLVE_ROWS + i];
        }
    }
}

/* Factors the block on the diagonal; false when it is not positive. */
static bool factor_block(const factor_job *job, float min_pivot) {
    float left[N * PE_SOLVE_ROWS];
    float *at = job->h + job->first * job->n + job->first;
    remainders(job, left, job->first, job->n_block);
    for (uint64_t k = job->n_block; k-- > 0;) {
        for (uint64_t i = 0; i <= k; i++) {
            double sum = left[k * PE_SOLVE_ROWS + i];
            for (uint64_t m = k + 1; m < job->n_block; m++) {
                sum -= (double)at[i * job->n + m] * (double)at[k * job->n + m];
            }
            left[k * PE_SOLVE_ROWS + i] = (float)sum;
        }
        const float pivot = left[k * PE_SOLVE_ROWS + k];
        if (!(pivot > min_pivot)) {
            return false;
        }
        const float root = sqrtf(pivot);
        for (uint64_t i = 0; i < k; i++) {
            at[i * job->n + k] = left[k * PE_SOLVE_ROWS + i] / root;
        }
        at[k * job->n + k] = root;
    }
    return true;
}

static void solve_rows(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const factor_job *job = arg;
    float left[N * PE_SOLVE_ROWS];
    const uint64_t n = job->n;
    const uint64_t first_row = (uint64_t)i_chunk * PE_SOLVE_ROWS;
    const uint64_t n_rows = PE_MIN(PE_SOLVE_ROWS, job->first - first_row);
    const float *block = job->h + job->first * n + job->first;
    remainders(job, left, first_row, n_rows);
    for (uint64_t k = job->n_block; k-- > 0;) {
        float *own = left + k * PE_SOLVE_ROWS;
        for (uint64_t m = k + 1; m < job->n_block; m++) {
            const float *done = left + m * PE_SOLVE_ROWS;
            const float factor = block[k * n + m];
            for (uint64_t i = 0; i < n_rows; i++) {
                own[i] -= done[i] * factor;
            }
        }
        for (uint64_t i = 0; i < n_rows; i++) {
            own[i] /= block[k * n + k];
            job->h[(first_row + i) * n + job->first + k] = own[i];
        }
    }
}

static bool factor(factor_job *job, float min_pivot) {
    const uint64_t n_blocks = pe_ceil_div(job->n, N);
    for (uint64_t b = n_blocks; b-- > 0;) {
        job->first = b * N;
        job->n_block = PE_MIN(N, job->n - job->first);
        if (!factor_block(job, min_pivot)) {
            return false;
        }
        pe_pool_run(job->q->pool, solve_rows, job,
                    (uint32_t)pe_ceil_div(job->first, PE_SOLVE_ROWS));
    }
    return true;
}

/* Rows first to first + N below the diagonal: M's columns. */
static void fill_below(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const factor_job *job = arg;
    const uint64_t n = job->n;
    const uint64_t first = (uint64_t)i_chunk * N;
    const uint64_t end = PE_MIN(first + N, n);
    for (uint64_t j = 0; j < end; j++) {
        for (uint64_t k = PE_MAX(first, j + 1); k < end; k++) {
            job->h[k * n + j] = job->h[j * n + k] / job->h[k * n + k];
        }
    }
}

/* Puts H back into the upper triangle from below it, with more on its diagonal. */
static void restore(const factor_job *job, const float *diagonal, float extra) {
    const uint64_t n = job->n;
    for (uint64_t i = 0; i < n; i++) {
        job->h[i * n + i] = diagonal[i] + extra;
        for (uint64_t j = 0; j < i; j++) {
            job->h[j * n + i] = job->h[i * n + j];
        }
    }
}

pe_status pe_quantizer_factor(pe_quantizer *q, float *h, uint64_t n, float damping,
                              float *out_damping, pe_error *err) {
    factor_job job = {.q = q, .h = h, .n = n};
    float *diagonal = pe_mem_alloc(n, sizeof *diagonal);
    if (diagonal == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "factor: no memory for a diagonal");
    }
    double sum = 0.0;
    for (uint64_t i = 0; i < n; i++) {
        diagonal[i] = h[i * n + i];
        sum += (double)diagonal[i];
    }
    float mean = (float)(sum / (double)n);
    mean = mean > 0.0f && pe_f32_is_finite(mean) ? mean : 1.0f;
    bool ok = false;
    for (int attempt = 0; attempt < MAX_ATTEMPTS && !ok; attempt++) {
        damping = attempt == 0 ? damping : PE_MAX(damping * 4.0f, 1e-4f);
        restore(&job, diagonal, damping * mean);
        ok = factor(&job, MIN_PIVOT * mean);
    }
    if (ok) {
        pe_pool_run(q->pool, fill_below, &job, (uint32_t)pe_ceil_div(n, N));
    }
    *out_damping = damping;
    pe_mem_free(diagonal);
    return ok ? PE_OK
              : pe_fail(err, PE_ERR_NUMERIC,
                        "moments: expected a positive definite matrix of %llu columns, found one"
                        " that is none even with %g times its mean on the diagonal",
                        (unsigned long long)n, (double)damping);
}
