#include "pe_fit.h"

#include <math.h>

#define MAX_RUN 32

float pe_fit_extreme(const float *x, size_t n) {
    float found = 0.0f;
    for (size_t i = 0; i < n; i++) {
        if (fabsf(x[i]) > fabsf(found)) {
            found = x[i];
        }
    }
    return found;
}

/* ---- scale alone ------------------------------------------------------ */

/* Least squares with weights w = x^2: the best scale is xq / qq, and what it takes from
 * the error xq^2 / qq. */
typedef struct fit {
    float xq;  // sum of w x q
    float qq;  // sum of w q q
} fit;

static void add(fit *sums, float x, int q) {
    const float w = x * x;
    sums->xq += w * x * (float)q;
    sums->qq += w * (float)q * (float)q;
}

static int rounded(float x, float inverse, int half) {
    return pe_fit_hold(pe_fit_nearest(inverse * x), -half, half - 1);
}

static fit try_inverse(const float *x, size_t n, float inverse, int half) {
    fit sums = {0.0f, 0.0f};
    for (size_t i = 0; i < n; i++) {
        add(&sums, x[i], rounded(x[i], inverse, half));
    }
    return sums;
}

float pe_fit_scale(uint8_t *q, const float *x, size_t n, int half) {
    memset(q, 0, n);
    const float extreme = pe_fit_extreme(x, n);
    if (fabsf(extreme) < PE_FIT_EPSILON) {
        return 0.0f;
    }
    float inverse = -(float)half / extreme;
    fit sums = try_inverse(x, n, inverse, half);
    float scale = sums.qq != 0.0f ? sums.xq / sums.qq : 0.0f;
    float best = scale * sums.xq;
    for (int step = -9; step <= 9; step++) {
        const float other = -((float)half + 0.1f * (float)step) / extreme;
        if (step != 0) {
            sums = try_inverse(x, n, other, half);
            if (sums.qq > 0.0f && sums.xq * sums.xq > best * sums.qq) {
                inverse = other;
                scale = sums.xq / sums.qq;
                best = scale * sums.xq;
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        q[i] = (uint8_t)(half + rounded(x[i], inverse, half));
    }
    return scale;
}

/* Moves weight i's integer if that lowers the error of all; whether it did. */
static bool move(fit *sums, int *q, float x, int half) {
    const float w = x * x;
    fit rest = {sums->xq - w * x * (float)*q, 0.0f};
    if (!(rest.xq > 0.0f)) {
        return false;
    }
    rest.qq = sums->qq - w * (float)*q * (float)*q;
    const int moved = pe_fit_hold(pe_fit_nearest(x * rest.qq / rest.xq), -half, half - 1);
    if (moved == *q) {
        return false;
    }
    add(&rest, x, moved);
    if (!(rest.qq > 0.0f && rest.xq * rest.xq * sums->qq > sums->xq * sums->xq * rest.qq)) {
        return false;
    }
    *sums = rest;
    *q = moved;
    return true;
}

float pe_fit_scale_by_turns(uint8_t *q, const float *x, size_t n, int half) {
    memset(q, 0, n);
    const float extreme = pe_fit_extreme(x, n);
    if (fabsf(extreme) < PE_FIT_EPSILON) {
        return 0.0f;
    }
    const float inverse = -(float)half / extreme;
    int current[MAX_RUN];
    fit sums = {0.0f, 0.0f};
    for (size_t i = 0; i < n; i++) {
        current[i] = rounded(x[i], inverse, half);
        add(&sums, x[i], current[i]);
    }
    bool moving = true;
    for (int turn = 0; turn < 5 && moving; turn++) {
        moving = false;
        for (size_t i = 0; i < n; i++) {
            moving = move(&sums, &current[i], x[i], half) || moving;
        }
    }
    for (size_t i = 0; i < n; i++) {
        q[i] = (uint8_t)(current[i] + half);
    }
    return sums.qq > 0.0f ? sums.xq / sums.qq : 0.0f;
}

/* ---- scale and minimum ------------------------------------------------ */

/* A line through the weights over their integers, and its error. */
typedef struct fit_line {
    float scale;
    float min;
    float error;
} fit_line;

typedef struct fit_run {
    const float *x;
    const float *weight;
    size_t n;
    float min;
    float max;
    float w;   // sum of the weights w
    float wx;  // sum of w x
} fit_run;

static fit_run measure(const float *x, const float *weight, size_t n) {
    fit_run out = {x, weight, n, x[0], x[0], weight[0], weight[0] * x[0]};
    for (size_t i = 1; i < n; i++) {
        out.min = x[i] < out.min ? x[i] : out.min;
        out.max = x[i] > out.max ? x[i] : out.max;
        out.w += weight[i];
        out.wx += weight[i] * x[i];
    }
    out.min = out.min > 0.0f ? 0.0f : out.min;
    return out;
}

static void round_from(uint8_t *q, const fit_run *run, float min, float inverse, int top) {
    for (size_t i = 0; i < run->n; i++) {
        q[i] = (uint8_t)pe_fit_hold(pe_fit_nearest(inverse * (run->x[i] - min)), 0, top);
    }
}

static float error_of(const fit_line *line, const uint8_t *q, const fit_run *run,
                      bool is_absolute) {
    float error = 0.0f;
    for (size_t i = 0; i < run->n; i++) {
        const float off = line->scale * (float)q[i] + line->min - run->x[i];
        error += run->weight[i] * (is_absolute ? fabsf(off) : off * off);
    }
    return error;
}

/* The line of least squares for given integers, which may not start above 0; false when
 * there is none. */
static bool solve(fit_line *out, const uint8_t *q, const fit_run *run) {
    float wq = 0.0f;
    float wqq = 0.0f;
    float wqx = 0.0f;
    for (size_t i = 0; i < run->n; i++) {
        const float w = run->weight[i];
        const float qi = (float)q[i];
        wq += w * qi;
        wqq += w * qi * qi;
        wqx += w * qi * run->x[i];
    }
    const float det = run->w * wqq - wq * wq;
    if (!(det > 0.0f)) {
        return false;
    }
    out->scale = (run->w * wqx - run->wx * wq) / det;
    out->min = (wqq * run->wx - wq * wqx) / det;
    if (out->min > 0.0f) {
        out->min = 0.0f;
        out->scale = wqx / wqq;
    }
    return true;
}

float pe_fit_scale_min(uint8_t *q, float *out_min, const float *x, const float *weight, size_t n,
                       const pe_fit_plan *plan) {
    const fit_run run = measure(x, weight, n);
    if (run.max == run.min) {
        memset(q, 0, n);
        *out_min = -run.min;
        return 0.0f;
    }
    const float inverse = (float)plan->top / (run.max - run.min);
    fit_line best = {1.0f / inverse, run.min, 0.0f};
    round_from(q, &run, run.min, inverse, plan->top);
    best.error = error_of(&best, q, &run, plan->is_absolute);
    for (int step = 0; step <= plan->n_steps; step++) {
        const float spread = plan->first + 0.1f * (float)step + (float)plan->top;
        uint8_t other[MAX_RUN];
        // From the best minimum so far, not from that of the weights.
        round_from(other, &run, best.min, spread / (run.max - best.min), plan->top);
        fit_line line;
        if (solve(&line, other, &run)) {
            line.error = error_of(&line, other, &run, plan->is_absolute);
            if (line.error < best.error) {
                best = line;
                memcpy(q, other, n);
            }
        }
    }
    *out_min = -best.min;
    return best.scale;
}
