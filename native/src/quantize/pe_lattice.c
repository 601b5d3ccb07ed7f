#include "pe_lattice.h"

#include <inttypes.h>
#include <math.h>

/* A source's rounding: |error| <= ratio |w| + least, half of 2^-bits of w's power of two; and
 * how many fp16 steps to each side of least squares' are tried: the error of a BF16 weight is
 * as wide as eight of them at equal size, and weights are larger than steps. */
typedef struct rounding {
    double ratio;
    double least;
    int bits;
    int reach;
} rounding;

static rounding rounding_of(uint32_t source) {
    switch (source) {
    case PE_DTYPE_F16: return (rounding){0x1p-11, 0x1p-25, 10, 8};
    case PE_DTYPE_BF16: return (rounding){0x1p-8, 0x1p-134, 7, 32};
    default: return (rounding){0x1p-23, 0x1p-150, 23, 2};
    }
}

/* Half of the distance between numbers of the source around w. */
static double half_step(const rounding *r, float w) {
    const uint32_t power = pe_f32_bits(w) & 0x7f800000u;
    const double half = (double)pe_f32_from_bits(power) * (0.5 / (double)(1u << r->bits));
    return half > r->least ? half : r->least;
}

static float as_source(float x, uint32_t source) {
    switch (source) {
    case PE_DTYPE_F16: return pe_f16_to_f32(pe_f16_from_f32(x));
    case PE_DTYPE_BF16: return pe_bf16_to_f32(pe_bf16_from_f32(x));
    default: return x;
    }
}

static pe_f16 shifted(pe_f16 x, int by) {
    const int magnitude = (x & 0x7fff) + by;
    return magnitude < 0 || magnitude >= 0x7c00 ? x : (pe_f16)((x & 0x8000) | magnitude);
}

/* Whether grid d, m gives the weights, their levels filled. */
static bool gives(pe_grid *grid, int8_t *levels, const float *w, uint32_t source) {
    pe_grid_derive(grid);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        int level;
        if (as_source(pe_grid_round(grid, i, w[i], &level), source) != w[i]) {
            return false;
        }
        levels[i] = (int8_t)level;
    }
    return true;
}

/* The middle of the minimums by which levels of step d round to the weights; false if there
 * are none. */
static bool middle_min(double *out, const float *w, const int8_t *levels, double d,
                       const rounding *r) {
    double low = -INFINITY;
    double high = INFINITY;
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const double rest = (double)w[i] - d * (double)levels[i];
        const double half = half_step(r, w[i]);
        low = PE_MAX(low, rest - half);
        high = PE_MIN(high, rest + half);
    }
    *out = 0.5 * (low + high);
    return low <= high;
}

/* Tries the fp16 numbers around a step, the nearest first; with minimums the levels say which
 * minimums to try. Fills the levels. */
static bool try_around(pe_grid *grid, int8_t *levels, const float *w, uint32_t source,
                       double step) {
    const rounding r = rounding_of(source);
    const pe_f16 d = pe_f16_from_f32((float)step);
    if ((d & 0x7c00u) == 0x7c00u) {
        return false;
    }
    for (int k = 0; k <= 2 * r.reach; k++) {
        grid->d = shifted(d, k % 2 == 0 ? -(k / 2) : (k + 1) / 2);
        if (!grid->has_min) {
            if (gives(grid, levels, w, source)) {
                return true;
            }
            continue;
        }
        double min;
        int8_t found[PE_BLOCK];
        if (!middle_min(&min, w, levels, (double)pe_f16_to_f32(grid->d), &r)) {
            continue;
        }
        const pe_f16 m = pe_f16_from_f32((float)min);
        for (int j = -1; j <= 1 && (m & 0x7c00u) != 0x7c00u; j++) {
            grid->m = shifted(m, j);
            if (gives(grid, found, w, source)) {
                memcpy(levels, found, sizeof found);
                return true;
            }
        }
    }
    return false;
}

/* A guess: weight = step * (q - shift) + base, q - shift counted from the weight `base`. */
typedef struct guess {
    double base;   // 0, or the lowest weight
    double width;  // of the anchor: what is n steps
    int n;
    int low;  // what counts may be
    int high;
} guess;

/* Step by least squares, and the counts; false at a weight that lies between the steps. */
static bool settle(double *out_step, int8_t *counts, const guess *g, const float *w,
                   const rounding *r, bool has_min) {
    const double step = g->width / (double)g->n;
    double q_sum = 0.0;
    double qq = 0.0;
    double x_sum = 0.0;
    double qx = 0.0;
    const double base_error = has_min ? r->ratio * fabs(g->base) + r->least : 0.0;
    const double width_error = r->ratio * (fabs(g->width) + fabs(g->base)) + r->least + base_error;
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const double x = (double)w[i] - g->base;
        const double at = x / step;
        if (!(at > (double)g->low - 0.5 && at < (double)g->high + 0.5)) {
            return false;
        }
        const double q = floor(at + 0.5);
        const double slack = r->ratio * fabs((double)w[i]) + r->least + base_error +
                             fabs(q / (double)g->n) * width_error;
        if (fabs(x - step * q) > 1.01 * slack) {
            return false;
        }
        counts[i] = (int8_t)q;
        q_sum += q;
        qq += q * q;
        x_sum += x;
        qx += q * x;
    }
    const double n = (double)PE_BLOCK;
    const double det = has_min ? n * qq - q_sum * q_sum : qq;
    if (!(det > 0.0)) {
        return false;
    }
    *out_step = (has_min ? n * qx - q_sum * x_sum : qx) / det;
    return true;
}

static bool find_scale(pe_grid *grid, int8_t *levels, const float *w, uint32_t source,
                       double widest) {
    const rounding r = rounding_of(source);
    double step;
    for (int n = 1; n <= -grid->low; n++) {
        for (int sign = 1; sign >= -1; sign -= 2) {
            const guess g = {0.0, widest, sign * n, grid->low, grid->high};
            if (settle(&step, levels, &g, w, &r, false) &&
                try_around(grid, levels, w, source, step)) {
                return true;
            }
        }
    }
    return false;
}

static bool find_line(pe_grid *grid, int8_t *levels, const float *w, uint32_t source, double min,
                      double max) {
    const rounding r = rounding_of(source);
    double step;
    for (int n = 1; n <= grid->high; n++) {
        const guess g = {min, max - min, n, 0, n};
        int8_t counts[PE_BLOCK];
        if (!settle(&step, counts, &g, w, &r, true)) {
            continue;
        }
        // The lowest weight may have any level that leaves room for the highest.
        for (int lowest = 0; lowest <= grid->high - n; lowest++) {
            for (size_t i = 0; i < PE_BLOCK; i++) {
                levels[i] = (int8_t)(counts[i] + lowest);
            }
            if (try_around(grid, levels, w, source, step)) {
                return true;
            }
        }
    }
    return false;
}

bool pe_lattice_find(pe_grid *out, int8_t *levels, uint32_t dtype, const float *w,
                     uint32_t source) {
    if (!pe_grid_init(out, dtype) || out->n_weights != PE_BLOCK || out->table != NULL) {
        return false;
    }
    float min = w[0];
    float max = w[0];
    for (size_t i = 0; i < PE_BLOCK; i++) {
        if (!pe_f32_is_finite(w[i])) {
            return false;
        }
        min = PE_MIN(min, w[i]);
        max = PE_MAX(max, w[i]);
    }
    if (min == max && (min == 0.0f || out->has_min)) {
        memset(levels, 0, PE_BLOCK);
        return try_around(out, levels, w, source, 0.0);
    }
    if (out->has_min) {
        return find_line(out, levels, w, source, (double)min, (double)max);
    }
    return find_scale(out, levels, w, source, -min > max ? (double)min : (double)max);
}

/* ---- the public call -------------------------------------------------- */

static bool is_source(uint32_t dtype) {
    return dtype == PE_DTYPE_F32 || dtype == PE_DTYPE_F16 || dtype == PE_DTYPE_BF16;
}

pe_status pe_find_lattice(void *out, uint8_t *out_found, uint32_t dtype, uint32_t source,
                          const float *weights, uint64_t n_weights, pe_error *err) {
    pe_dtype_info info;
    PE_TRY(pe_dtype_describe(&info, dtype, err));
    pe_grid grid;
    if (!pe_grid_init(&grid, dtype) || grid.n_weights != PE_BLOCK || grid.table != NULL) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "tensor type %s: expected Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0 for a lattice",
                       info.name);
    }
    if (!is_source(source)) {
        return pe_fail(err, PE_ERR_ARG, "source: expected F32, F16 or BF16, found type %u", source);
    }
    if (n_weights % PE_BLOCK != 0) {
        return pe_fail(err, PE_ERR_ARG,
                       "%s: expected whole blocks of %d weights, found %" PRIu64 " weights",
                       info.name, PE_BLOCK, n_weights);
    }
    for (uint64_t b = 0; b < n_weights / PE_BLOCK; b++) {
        uint8_t *block = (uint8_t *)out + b * info.block_bytes;
        int8_t levels[PE_BLOCK];
        out_found[b] = pe_lattice_find(&grid, levels, dtype, weights + b * PE_BLOCK, source);
        memset(block, 0, info.block_bytes);
        if (out_found[b]) {
            pe_grid_encode(block, &grid, levels);
        }
    }
    return PE_OK;
}
