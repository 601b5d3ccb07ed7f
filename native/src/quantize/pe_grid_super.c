/* Super-blocks: sub-block s has step d * scale[s] and offset -(m * min[s]), small integers
 * times two numbers of fp16 that all share. From the best lines of every sub-block for
 * itself, and from several d and m,
 *
 *     1. the integers of each sub-block are chosen for d and m: those around its lines,
 *        with the weights rounded anew for each;
 *     2. d and m are solved for all integers by least squares,
 *
 * by turns, for as long as the error falls. */
#include <math.h>

#include "pe_problem.h"

#define N_LINES 2  // candidates of a sub-block
#define N_TURNS 5

typedef struct super {
    const pe_problem *p;
    pe_run runs[PE_GRID_MAX_SUBS];
    pe_line lines[PE_GRID_MAX_SUBS][N_LINES];
    size_t n_lines[PE_GRID_MAX_SUBS];
    int scale_low;
    int scale_high;
    int min_high;  // 0 without minimums
} super;

static void set_ranges(super *s) {
    switch (s->p->grid->dtype) {
    case PE_DTYPE_Q2_K: s->scale_low = 0, s->scale_high = s->min_high = 15; return;
    case PE_DTYPE_Q4_K:
    case PE_DTYPE_Q5_K: s->scale_low = 0, s->scale_high = s->min_high = 63; return;
    case PE_DTYPE_Q6_K: s->scale_low = -128, s->scale_high = 127, s->min_high = 0; return;
    default: s->scale_low = -32, s->scale_high = 31, s->min_high = 0; return;
    }
}

static void find_lines(super *s) {
    for (size_t j = 0; j < s->p->grid->n_subs; j++) {
        s->runs[j] = pe_problem_run(s->p, j);
        const pe_run *run = &s->runs[j];
        s->n_lines[j] = 1;
        if (s->min_high > 0) {
            s->n_lines[j] = PE_MAX(pe_run_lines(s->lines[j], N_LINES, run, true), 1);
        } else {
            const float step =
                run->table != NULL ? pe_run_scan(run, 88.0f, 4.0f, 14, true) : pe_run_scale(run);
            s->lines[j][0] = (pe_line){step, -0.0f, 0.0f};
        }
    }
}

static int held(float x, int low, int high) {
    const float top = (float)high;
    const float bottom = (float)low;
    x = x < top ? x : top;
    x = x > bottom ? x : bottom;
    return (int)floorf(x + 0.5f);
}

/* ---- step 1: integers for d and m ------------------------------------- */

typedef struct choice {
    int scale;
    int min;
    float error;
} choice;

static float offset_of(float m, int min) {
    return -(m * (float)min);
}

/* The best minimum for a scale, from that of a line: the mean of what integers leave. */
static void try_scale(choice *best, const super *s, size_t j, float d, float m, int scale,
                      float offset) {
    const pe_run *run = &s->runs[j];
    const float step = d * (float)scale;
    int min = 0;
    for (int turn = 0; s->min_high > 0 && m != 0.0f && turn < 2; turn++) {
        pe_run_sums sums;
        pe_run_sum(&sums, run, step, offset);
        offset = (sums.hx - step * sums.hq) / sums.h;
        min = held(-offset / m, 0, s->min_high);
        offset = offset_of(m, min);
    }
    const float error = pe_run_error(run, step, offset_of(m, min));
    if (error < best->error) {
        *best = (choice){scale, min, error};
    }
}

static void try_mins(choice *best, const super *s, size_t j, float d, float m) {
    const choice centre = *best;
    for (int by = -1; by <= 1; by += 2) {
        const int min = centre.min + by;
        if (min >= 0 && min <= s->min_high) {
            const float error =
                pe_run_error(&s->runs[j], d * (float)centre.scale, offset_of(m, min));
            if (error < best->error) {
                *best = (choice){centre.scale, min, error};
            }
        }
    }
}

static choice choose(const super *s, size_t j, float d, float m) {
    choice best = {0, 0, INFINITY};
    for (size_t k = 0; k < s->n_lines[j]; k++) {
        const pe_line *line = &s->lines[j][k];
        const float ratio = d != 0.0f ? line->step / d : 0.0f;
        // Integers lie unevenly around 0, so the other sign of a scale is another grid.
        for (int sign = 1; sign >= (s->scale_low < 0 ? -1 : 1); sign -= 2) {
            const int centre = held((float)sign * ratio, s->scale_low, s->scale_high);
            for (int by = -1; by <= 1; by++) {
                const int scale = centre + by;
                if (scale >= s->scale_low && scale <= s->scale_high) {
                    try_scale(&best, s, j, d, m, scale, line->offset);
                }
            }
        }
    }
    if (s->min_high > 0) {
        try_mins(&best, s, j, d, m);
    }
    return best;
}

static float choose_all(const super *s, pe_grid *grid) {
    const float d = pe_problem_from_f16(s->p, grid->d);
    const float m = pe_problem_from_f16(s->p, grid->m);
    float error = 0.0f;
    for (size_t j = 0; j < grid->n_subs; j++) {
        const choice best = choose(s, j, d, m);
        grid->scale[j] = (int8_t)best.scale;
        grid->min[j] = (uint8_t)best.min;
        error += best.error;
    }
    return error;
}

/* ---- step 2: d and m for the integers --------------------------------- */

/* Solves x ~ d a - m b, a = scale q and b = min; false when that has no good answer. */
static bool solve(const super *s, pe_grid *grid) {
    const float d = pe_problem_from_f16(s->p, grid->d);
    const float m = pe_problem_from_f16(s->p, grid->m);
    double aa = 0.0;
    double ab = 0.0;
    double bb = 0.0;
    double ax = 0.0;
    double bx = 0.0;
    for (size_t j = 0; j < grid->n_subs; j++) {
        const double scale = (double)grid->scale[j];
        const double min = (double)grid->min[j];
        pe_run_sums sums;
        pe_run_sum(&sums, &s->runs[j], d * (float)grid->scale[j], offset_of(m, grid->min[j]));
        aa += scale * scale * (double)sums.hqq;
        ab += scale * min * (double)sums.hq;
        bb += min * min * (double)sums.h;
        ax += scale * (double)sums.hqx;
        bx += min * (double)sums.hx;
    }
    const double det = aa * bb - ab * ab;
    double new_d;
    double new_m = 0.0;
    if (bb == 0.0) {
        if (!(aa > 0.0)) {
            return false;
        }
        new_d = ax / aa;
    } else {
        if (!(det > 1e-9 * aa * bb)) {
            return false;
        }
        new_d = (ax * bb - ab * bx) / det;
        new_m = (ab * ax - aa * bx) / det;
    }
    grid->d = pe_problem_to_f16(s->p, (float)new_d);
    grid->m = pe_problem_to_f16(s->p, (float)new_m);
    return !pe_problem_is_infinite(grid->d) && !pe_problem_is_infinite(grid->m) &&
           (s->min_high == 0 || (new_d > 0.0 && new_m >= 0.0));
}

/* ---- starts ----------------------------------------------------------- */

#define N_CLIMBS 2  // starts that are followed

/* By what d and m are larger at the start than what gives the widest sub-block the largest
 * integer: other fractions of the integers are lost, and the widest may be cut. */
static const float D_FACTORS[] = {1.0f, 0.92f, 1.08f};
static const float M_FACTORS[] = {1.0f, 0.94f, 1.06f};
// Of scales alone, over the low end of their range and then over the high one.
static const float FACTORS[] = {1.0f, 0.96f, 1.03f, 1.06f, 1.1f, 1.15f};

typedef struct start {
    pe_grid grid;
    float error;
} start;

/* Step 1 for one start, which takes its place among the best. */
static void try_start(start *best, const super *s, float d, float m) {
    start found = {*s->p->grid, 0.0f};
    pe_grid *grid = &found.grid;
    grid->d = pe_problem_to_f16(s->p, d);
    grid->m = pe_problem_to_f16(s->p, m);
    // What fp16 would lose altogether keeps its least number.
    grid->d = (grid->d & 0x7fff) == 0 && d != 0.0f ? pe_problem_beside(grid->d, 1) : grid->d;
    grid->m = (grid->m & 0x7fff) == 0 && m != 0.0f ? pe_problem_beside(grid->m, 1) : grid->m;
    if (pe_problem_is_infinite(grid->d) || pe_problem_is_infinite(grid->m)) {
        return;
    }
    found.error = choose_all(s, grid);
    size_t at = N_CLIMBS;
    for (; at > 0 && found.error < best[at - 1].error; at--) {
        if (at < N_CLIMBS) {
            best[at] = best[at - 1];
        }
    }
    if (at < N_CLIMBS) {
        best[at] = found;
    }
}

static void climb(start *best, const super *s) {
    start now = *best;
    for (int turn = 0; turn < N_TURNS && solve(s, &now.grid); turn++) {
        now.error = choose_all(s, &now.grid);
        if (!(now.error < best->error)) {
            return;
        }
        *best = now;
    }
}

bool pe_problem_solve_super(const pe_problem *p) {
    super s = {.p = p};
    set_ranges(&s);
    find_lines(&s);
    float step = 0.0f;
    float min = 0.0f;
    for (size_t j = 0; j < p->grid->n_subs; j++) {
        const pe_line *line = &s.lines[j][0];
        step = fabsf(line->step) > fabsf(step) ? line->step : step;
        min = -line->offset > min ? -line->offset : min;
    }
    start best[N_CLIMBS];
    for (size_t k = 0; k < N_CLIMBS; k++) {
        best[k] = (start){*p->grid, INFINITY};
    }
    if (s.min_high > 0) {
        for (size_t k = 0; k < PE_LEN(D_FACTORS) * PE_LEN(M_FACTORS); k++) {
            const float d = step / (float)s.scale_high * D_FACTORS[k / PE_LEN(M_FACTORS)];
            const float m = min / (float)s.min_high * M_FACTORS[k % PE_LEN(M_FACTORS)];
            try_start(best, &s, d, m);
        }
    } else {
        for (size_t k = 0; k < PE_LEN(FACTORS) * 2; k++) {
            const int end = k % 2 == 0 ? s.scale_low : s.scale_high;
            try_start(best, &s, step / (float)end * FACTORS[k / 2], 0.0f);
        }
    }
    start least = {*p->grid, INFINITY};
    for (size_t k = 0; k < N_CLIMBS && best[k].error < INFINITY; k++) {
        climb(&best[k], &s);
        least = best[k].error < least.error ? best[k] : least;
    }
    *p->grid = least.grid;
    return least.error < INFINITY;
}
