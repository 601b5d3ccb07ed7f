#include "pe_run.h"

#include <math.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* Four floats. GCC and Clang make each operation one instruction, or four, with the same
 * result: it is that of the float operations. */
typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_mask __attribute__((vector_size(16)));

#define LANES PE_RUN_LANES

static inline quad load(const float *x) {
    quad out;
    memcpy(&out, x, sizeof out);
    return out;
}

static inline quad all(float x) {
    return (quad){x, x, x, x};
}

/* a < b ? a : b in each lane. */
static inline quad lesser(quad a, quad b) {
#if defined(__SSE2__)
    return (quad)_mm_min_ps((__m128)a, (__m128)b);
#else
    const quad_mask is_less = a < b;
    return (quad)(((quad_mask)a & is_less) | ((quad_mask)b & ~is_less));
#endif
}

/* a > b ? a : b in each lane. */
static inline quad greater(quad a, quad b) {
#if defined(__SSE2__)
    return (quad)_mm_max_ps((__m128)a, (__m128)b);
#else
    const quad_mask is_more = a > b;
    return (quad)(((quad_mask)a & is_more) | ((quad_mask)b & ~is_more));
#endif
}

static inline float total(quad x) {
    return (x[0] + x[2]) + (x[1] + x[3]);
}

static float inverse_of(float step) {
    const float inverse = step != 0.0f ? 1.0f / step : 0.0f;
    return pe_f32_is_finite(inverse) ? inverse : 0.0f;
}

/* The nearest integers in the run's range, as floats; pe_grid_level says how. */
static inline quad rounded(const pe_run *run, quad x) {
    x = greater(lesser(x, all((float)run->high)), all((float)run->low));
    return (x + all(0x1.8p23f)) - all(0x1.8p23f);
}

/* The nearest values of a table: from the lowest on, each bound that x reaches adds the way
 * to the next. All are small integers, exact in float. */
static quad tabled(const pe_run *run, quad x) {
    quad out = all((float)run->table[0]);
    for (size_t b = 0; b < 15; b++) {
        const quad way = all((float)(run->table[b + 1] - run->table[b]));
        const quad_mask reaches = x >= all(run->bound[b]);
        out += (quad)((quad_mask)way & reaches);
    }
    return out;
}

static inline quad nearest(const pe_run *run, quad x) {
    return run->table != NULL ? tabled(run, x) : rounded(run, x);
}

float pe_run_error(const pe_run *run, float step, float offset) {
    const quad inverse = all(inverse_of(step));
    quad sum = all(0.0f);
    for (size_t i = 0; i < run->n; i += LANES) {
        const quad x = load(run->x + i);
        const quad q = nearest(run, (x - all(offset)) * inverse);
        const quad off = x - (all(step) * q + all(offset));
        sum += load(run->h + i) * (off * off);
    }
    return total(sum);
}

/* ---- scale alone ------------------------------------------------------ */

/* Least squares: the best scale is b / c, which takes b^2 / c from the error. */
typedef struct fit {
    double b;  // sum of h x q
    double c;  // sum of h q q
} fit;

static bool is_better(const fit *a, const fit *b) {
    return a->c > 0.0 && (b->c == 0.0 || a->b * a->b * b->c > b->b * b->b * a->c);
}

static fit fit_at(const pe_run *run, float inverse) {
    quad b = all(0.0f);
    quad c = all(0.0f);
    for (size_t i = 0; i < run->n; i += LANES) {
        const quad x = load(run->x + i);
        const quad q = nearest(run, x * all(inverse));
        const quad hq = load(run->h + i) * q;
        b += hq * x;
        c += hq * q;
    }
    return (fit){(double)total(b), (double)total(c)};
}

static float extreme_of(const pe_run *run) {
    float found = 0.0f;
    for (size_t i = 0; i < run->n; i++) {
        found = fabsf(run->x[i]) > fabsf(found) ? run->x[i] : found;
    }
    return found;
}

float pe_run_scan(const pe_run *run, float first, float by, int n, bool both) {
    const float extreme = extreme_of(run);
    fit best = {0.0, 0.0};
    for (int k = 0; extreme != 0.0f && k < n; k++) {
        const float inverse = (first + by * (float)k) / extreme;
        for (int sign = 0; sign < (both ? 2 : 1); sign++) {
            const fit found = fit_at(run, sign == 0 ? inverse : -inverse);
            best = is_better(&found, &best) ? found : best;
        }
    }
    return best.c > 0.0 ? (float)(best.b / best.c) : 0.0f;
}

/* Where a magnitude steps up: at s weight i goes from k to k + 1. */
typedef struct event {
    float s;
    uint8_t i;
    uint8_t k;
} event;

#define MAX_EVENTS (PE_RUN_MAX * 32)
#define N_BUCKETS 128

/* Sorts by s in from..to: into buckets, then by insertion, which has little left to do. */
static void sort_events(event *sorted, const event *events, size_t n, float from, float to) {
    uint16_t start[N_BUCKETS + 1] = {0};
    uint8_t bucket[MAX_EVENTS];
    const float per_s = to > from ? (float)(N_BUCKETS - 1) / (to - from) : 0.0f;
    for (size_t e = 0; e < n; e++) {
        const float at = (events[e].s - from) * per_s;
        bucket[e] = (uint8_t)(at > 0.0f ? PE_MIN(at, (float)(N_BUCKETS - 1)) : 0.0f);
        start[bucket[e] + 1]++;
    }
    for (size_t b = 0; b < N_BUCKETS; b++) {
        start[b + 1] = (uint16_t)(start[b + 1] + start[b]);
    }
    for (size_t e = 0; e < n; e++) {
        sorted[start[bucket[e]]++] = events[e];
    }
    for (size_t e = 1; e < n; e++) {
        const event moved = sorted[e];
        size_t to_e = e;
        for (; to_e > 0 && sorted[to_e - 1].s > moved.s; to_e--) {
            sorted[to_e] = sorted[to_e - 1];
        }
        sorted[to_e] = moved;
    }
}

/* The first and last s that a best scale can have, given an error that it must beat. */
static void bound_events(float *out_from, float *out_to, const pe_run *run, float widest,
                         float error) {
    const float half = (float)-run->low;
    float from = 0.0f;
    for (float next = 0.5f;; next += 0.5f) {
        const float lost_below = 0.5f * widest / next;
        float lost = 0.0f;
        for (size_t i = 0; i < run->n; i++) {
            const float x = fabsf(run->x[i]);
            lost += x < lost_below ? run->h[i] * (x * x) : 0.0f;
        }
        if (lost <= error || next > half) {
            break;
        }
        from = next;
    }
    // 1.1^150 is 1.6 million: what would be larger has no weight above 1e-6 of the widest
    // unclipped, and is no grid for these weights.
    float to = half;
    for (int turn = 0; turn < 150; turn++, to *= 1.1f) {
        const float reach = half * widest / to;
        float lost = 0.0f;
        for (size_t i = 0; i < run->n; i++) {
            const float x = fabsf(run->x[i]) - reach;
            lost += x > 0.0f ? run->h[i] * (x * x) : 0.0f;
        }
        if (lost > error) {
            break;
        }
    }
    *out_from = from / widest;
    *out_to = to / widest;
}

/* The state of the sweep: what both signs share, and what the weights add that reach half. */
typedef struct sweep {
    fit common;
    fit top[2];  // of scale > 0 and of scale < 0
} sweep;

static void add_step(fit *sums, double h, double x, double k) {
    sums->b += h * x;
    sums->c += h * (2.0 * k + 1.0);
}

static void advance(sweep *sums, const pe_run *run, size_t i, int k) {
    const float x = run->x[i];
    fit *one = &sums->common;
    if (k == run->high) {  // the last step, which only one sign has
        one = &sums->top[x < 0.0f ? 0 : 1];
    }
    add_step(one, (double)run->h[i], fabs((double)x), (double)k);
}

static void compare(fit *best, const sweep *sums) {
    for (int sign = 0; sign < 2; sign++) {
        const fit found = {sums->common.b + sums->top[sign].b, sums->common.c + sums->top[sign].c};
        if (is_better(&found, best)) {
            *best = found;
            best->b = sign == 0 ? found.b : -found.b;
        }
    }
}

float pe_run_scale(const pe_run *run) {
    const float extreme = extreme_of(run);
    if (extreme == 0.0f) {
        return 0.0f;
    }
    const float widest = fabsf(extreme);
    float squares = 0.0f;
    for (size_t i = 0; i < run->n; i++) {
        squares += run->h[i] * (run->x[i] * run->x[i]);
    }
    fit best = {0.0, 0.0};
    for (int k = 0; k < 4; k++) {
        const float inverse = ((float)run->low + 0.4f * (float)k) / extreme;
        for (int sign = 0; sign < 2; sign++) {
            const fit found = fit_at(run, sign == 0 ? inverse : -inverse);
            best = is_better(&found, &best) ? found : best;
        }
    }
    const double gain = best.c > 0.0 ? best.b * best.b / best.c : 0.0;
    const double error = (double)squares - gain;
    float from;
    float to;
    // The sums are floats: some of their last bits on top, so that the bounds hold.
    bound_events(&from, &to, run, widest,
                 (float)(PE_MAX(error, 0.0) * 1.0001 + (double)squares * 1e-6));
    event events[MAX_EVENTS];
    size_t n = 0;
    sweep sums = {{0.0, 0.0}, {{0.0, 0.0}, {0.0, 0.0}}};
    for (size_t i = 0; i < run->n; i++) {
        const float x = fabsf(run->x[i]);
        if (x * to < 0.5f) {
            continue;
        }
        const float each = 1.0f / x;
        for (int k = 0; k < -run->low; k++) {
            const float s = ((float)k + 0.5f) * each;
            if (s > to) {
                break;
            }
            if (s <= from) {
                advance(&sums, run, i, k);
            } else {
                events[n++] = (event){s, (uint8_t)i, (uint8_t)k};
            }
        }
    }
    compare(&best, &sums);
    event sorted[MAX_EVENTS];
    sort_events(sorted, events, n, from, to);
    for (size_t e = 0; e < n; e++) {
        advance(&sums, run, sorted[e].i, sorted[e].k);
        compare(&best, &sums);
    }
    return best.c > 0.0 ? (float)(best.b / best.c) : 0.0f;
}

/* ---- sums for given lines --------------------------------------------- */

void pe_run_sum(pe_run_sums *out, const pe_run *run, float step, float offset) {
    const quad inverse = all(inverse_of(step));
    quad sum[5] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
    for (size_t i = 0; i < run->n; i += LANES) {
        const quad x = load(run->x + i);
        const quad h = load(run->h + i);
        const quad q = nearest(run, (x - all(offset)) * inverse);
        const quad hq = h * q;
        sum[0] += h;
        sum[1] += hq;
        sum[2] += hq * q;
        sum[3] += h * x;
        sum[4] += hq * x;
    }
    *out = (pe_run_sums){total(sum[0]), total(sum[1]), total(sum[2]), total(sum[3]), total(sum[4])};
}

/* ---- scale and offset ------------------------------------------------- */

/* The weights around their mean, which loses fewer bits, and their sums. */
typedef struct centred {
    float x[PE_RUN_MAX];
    const pe_run *run;
    float mean;
    double h;   // sum of h
    double hx;  // sum of h x, almost 0
    double hxx;
    bool is_down;
} centred;

static centred centre(const pe_run *run, bool is_down) {
    centred out = {.run = run, .is_down = is_down};
    double hx = 0.0;
    for (size_t i = 0; i < run->n; i++) {
        out.h += (double)run->h[i];
        hx += (double)run->h[i] * (double)run->x[i];
    }
    out.mean = (float)(hx / out.h);
    for (size_t i = 0; i < run->n; i++) {
        out.x[i] = run->x[i] - out.mean;
        out.hx += (double)run->h[i] * (double)out.x[i];
        out.hxx += (double)run->h[i] * (double)out.x[i] * (double)out.x[i];
    }
    return out;
}

/* From a line to the least squares of its integers; false where these are all equal. Line
 * offsets are of the centred weights. error is that of the new line with the old integers. */
static bool turn_line(pe_line *out, const centred *c, const pe_line *line) {
    const pe_run *run = c->run;
    const quad inverse = all(inverse_of(line->step));
    quad hq = all(0.0f);
    quad hqq = all(0.0f);
    quad hqx = all(0.0f);
    for (size_t i = 0; i < run->n; i += LANES) {
        const quad x = load(c->x + i);
        const quad q = rounded(run, (x - all(line->offset)) * inverse);
        const quad w = load(run->h + i) * q;
        hq += w;
        hqq += w * q;
        hqx += w * x;
    }
    const double sq = (double)total(hq);
    const double sqq = (double)total(hqq);
    const double sqx = (double)total(hqx);
    const double det = c->h * sqq - sq * sq;
    if (!(det > 1e-6 * c->h * sqq)) {
        return false;
    }
    double step = (c->h * sqx - c->hx * sq) / det;
    double offset = (c->hx - step * sq) / c->h;
    const double mean = (double)c->mean;
    double error = c->hxx - step * sqx - offset * c->hx;
    if (c->is_down && offset + mean > 0.0) {
        step = (sqx + mean * sq) / sqq;  // of the weights as they are
        offset = -mean;
        error = c->hxx + 2.0 * mean * c->hx + mean * mean * c->h - step * (sqx + mean * sq);
    }
    *out = (pe_line){(float)step, (float)offset, (float)PE_MAX(error, 0.0)};
    return step > 0.0;
}

/* Keeps the best n_out lines in order; equal errors are taken for equal lines. */
static size_t keep(pe_line *lines, size_t n, size_t n_out, const pe_line *line) {
    size_t at = n;
    while (at > 0 && lines[at - 1].error > line->error) {
        at--;
    }
    if (at == n_out || (at > 0 && lines[at - 1].error == line->error)) {
        return n;
    }
    n = PE_MIN(n + 1, n_out);
    memmove(lines + at + 1, lines + at, (n - 1 - at) * sizeof *lines);
    lines[at] = *line;
    return n;
}

#define N_STARTS 8  // lines that are followed to their end
#define N_CUTS 7

/* By how many steps of the grid an end of the range moves inwards. */
static const float CUTS[N_CUTS] = {-0.45f, -0.2f, 0.05f, 0.3f, 0.6f, 1.0f, 1.5f};

size_t pe_run_lines(pe_line *out, size_t n_out, const pe_run *run, bool is_down) {
    const centred c = centre(run, is_down);
    float min = c.x[0];
    float max = c.x[0];
    for (size_t i = 1; i < run->n; i++) {
        min = PE_MIN(min, c.x[i]);
        max = PE_MAX(max, c.x[i]);
    }
    if (is_down) {
        min = PE_MIN(min, -c.mean);
    }
    const float top = (float)run->high;
    pe_line starts[N_STARTS];
    size_t n_starts = 0;
    // Coarse grids have fewer steps to give away.
    const float unit = top < 8.0f ? 0.5f : 1.0f;
    for (size_t k = 0; max > min && k < (size_t)N_CUTS * N_CUTS; k++) {
        const float below = unit * CUTS[k / N_CUTS];
        const float above = unit * CUTS[k % N_CUTS];
        const float step = (max - min) / (top - below - above);
        const pe_line start = {step, min + below * step, 0.0f};
        pe_line line;
        if (turn_line(&line, &c, &start)) {
            n_starts = keep(starts, n_starts, N_STARTS, &line);
        }
    }
    size_t n = 0;
    for (size_t k = 0; k < n_starts; k++) {
        pe_line line = starts[k];
        pe_line next;
        for (int turn = 0; turn < 8 && turn_line(&next, &c, &line); turn++) {
            const bool has_ended = !(next.error < line.error);
            line = next.error < line.error ? next : line;
            if (has_ended) {
                break;
            }
        }
        n = keep(out, n, n_out, &line);
    }
    for (size_t k = 0; k < n; k++) {
        out[k].offset += c.mean;
        out[k].offset = is_down ? PE_MIN(out[k].offset, 0.0f) : out[k].offset;
    }
    if (n == 0) {
        out[0] = (pe_line){0.0f, is_down ? PE_MIN(c.mean, 0.0f) : c.mean, 0.0f};
    }
    return n;
}
