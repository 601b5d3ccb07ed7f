/* Elementary functions in double precision that give the same bits everywhere.
 *
 * libm's pow, exp, sin and cos differ in the last bit between C libraries; these
 * use only IEEE additions, multiplications and divisions in a fixed order (the
 * core is built with -ffp-contract=off). Relative error below 1e-14, far below
 * the float results they are rounded to. They fill tables and serve log-sums;
 * the float exponential of the hot paths is a kernel (pe_kernels.h).
 */
#ifndef PE_MATH_H
#define PE_MATH_H

/* e^x; 0 below -700, infinity above 700, NaN for NaN. */
double pe_exp(double x);

/* Natural logarithm of a normal x > 0. */
double pe_log(double x);

/* Sine and cosine of an angle in radians, |angle| < 2^28. */
void pe_sincos(double angle, double *out_sin, double *out_cos);

#endif
