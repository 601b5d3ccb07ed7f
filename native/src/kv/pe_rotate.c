#include "pe_rotate.h"

#include <math.h>

#define MIN_RUN 32

void pe_rotate(float *x, size_t d, size_t n_run) {
    if (n_run < MIN_RUN) {
        return;
    }
    // Runs are a whole number of steps, so all are worked on as one.
    for (size_t step = 1; step < n_run; step *= 2) {
        for (size_t first = 0; first < d; first += 2 * step) {
            float *low = x + first;
            float *high = low + step;
            for (size_t i = 0; i < step; i++) {
                const float sum = low[i] + high[i];
                high[i] = low[i] - high[i];
                low[i] = sum;
            }
        }
    }
    const float norm = (float)(1.0 / sqrt((double)n_run));
    for (size_t i = 0; i < d; i++) {
        x[i] = x[i] * norm;
    }
}
