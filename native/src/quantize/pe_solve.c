/* Rows y of a matrix become y H^-1, H = R R^T as pe_factor.c has it. */
#include "pe_quantizer.h"

#define N PE_SOLVE_COLUMNS

typedef struct solve_job {
    const pe_quantizer *q;
    float *y;
    const float *factor;
    uint64_t n_rows;
    uint64_t n;
} solve_job;

/* u with u R^T = y, from the last column to the first: R's rows are what lies behind. */
static void solve_upper(const solve_job *job, float *y, uint64_t n_rows) {
    const uint64_t n = job->n;
    float done[N * PE_SOLVE_ROWS];
    for (uint64_t b = pe_ceil_div(n, N); b-- > 0;) {
        const uint64_t first = b * N;
        const uint64_t behind = PE_MIN(first + N, n);
        pe_dot_rows(job->q, done, PE_SOLVE_ROWS, y + behind, n, n_rows,
                    job->factor + first * n + behind, n, behind - first, n - behind);
        for (uint64_t k = behind; k-- > first;) {
            const float *row = job->factor + k * n;
            for (uint64_t i = 0; i < n_rows; i++) {
                float sum = y[i * n + k] - done[(k - first) * PE_SOLVE_ROWS + i];
                for (uint64_t m = k + 1; m < behind; m++) {
                    sum -= y[i * n + m] * row[m];
                }
                y[i * n + k] = sum / row[k];
            }
        }
    }
}

/* z with z R = u, from the first column on: column k of R is M's times its diagonal. */
static void solve_lower(const solve_job *job, float *y, uint64_t n_rows) {
    const uint64_t n = job->n;
    float done[N * PE_SOLVE_ROWS];
    for (uint64_t first = 0; first < n; first += N) {
        const uint64_t behind = PE_MIN(first + N, n);
        pe_dot_rows(job->q, done, PE_SOLVE_ROWS, y, n, n_rows, job->factor + first * n, n,
                    behind - first, first);
        for (uint64_t k = first; k < behind; k++) {
            const float *row = job->factor + k * n;
            for (uint64_t i = 0; i < n_rows; i++) {
                float sum = y[i * n + k] / row[k] - done[(k - first) * PE_SOLVE_ROWS + i];
                for (uint64_t j = first; j < k; j++) {
                    sum -= y[i * n + j] * row[j];
                }
                y[i * n + k] = sum;
            }
        }
    }
}

static void solve_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const solve_job *job = arg;
    const uint64_t first = (uint64_t)i_chunk * PE_SOLVE_ROWS;
    const uint64_t n_rows = PE_MIN(PE_SOLVE_ROWS, job->n_rows - first);
    solve_upper(job, job->y + first * job->n, n_rows);
    solve_lower(job, job->y + first * job->n, n_rows);
}

void pe_quantizer_solve(pe_quantizer *q, float *y, const float *factor, uint64_t n_rows,
                        uint64_t n) {
    solve_job job = {.q = q, .y = y, .factor = factor, .n_rows = n_rows, .n = n};
    pe_pool_run(q->pool, solve_chunk, &job, (uint32_t)pe_ceil_div(n_rows, PE_SOLVE_ROWS));
}
