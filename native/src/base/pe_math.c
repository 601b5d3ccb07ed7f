#include "pe_math.h"

#include <stdint.h>
#include <string.h>

/* ln 2 and pi/2 in parts (Cody and Waite, 1980). All but the last have so few bits
 * that their multiples are exact: of 33 bits for ln 2, where multiples stay below
 * 2^11, of 25 and 23 bits for pi/2, where they reach 2^28. */
static const double LN2_HI = 0x1.62e42fee00000p-1;
static const double LN2_LO = 0x1.a39ef35793c76p-33;
static const double LN2 = 0x1.62e42fefa39efp-1;
static const double PI_2_A = 0x1.921fb50000000p+0;
static const double PI_2_B = 0x1.110b440000000p-26;
static const double PI_2_C = 0x1.08d313198a2e0p-49;
static const double TWO_OVER_PI = 0x1.45f306dc9c883p-1;

/* Nearest integer, ties to even, for |x| < 2^51: adding 1.5 * 2^52 leaves no
 * room for a fraction. */
static double nearest(double x) {
    const double magic = 0x1.8p52;
    return (x + magic) - magic;
}

static double power_of_two(int exponent) {
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

double pe_exp(double x) {
    if (x != x) {
        return x;
    }
    if (x < -700.0) {
        return 0.0;
    }
    if (x > 700.0) {
        const uint64_t infinity = 0x7ff0000000000000u;
        double result;
        memcpy(&result, &infinity, sizeof result);
        return result;
    }
    const double n = nearest(x / LN2);
    const double r = (x - n * LN2_HI) - n * LN2_LO;  // |r| <= ln 2 / 2
    double sum = 1.0;
    for (int k = 17; k >= 1; k--) {  // Taylor series by Horner; 0.35^18 / 18! < 1e-24
        sum = 1.0 + sum * r / k;
    }
    return sum * power_of_two((int)n);
}

double pe_log(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    double m;  // x = m * 2^exponent with m in [1, 2), then in [sqrt(1/2), sqrt(2))
    memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        exponent += 1;
    }
    // log m = 2 artanh((m - 1) / (m + 1)) = 2 (s + s^3/3 + s^5/5 + ...), |s| < 0.172
    const double s = (m - 1.0) / (m + 1.0);
    const double s2 = s * s;
    double sum = 0.0;
    for (int k = 25; k >= 1; k -= 2) {
        sum = sum * s2 + 1.0 / k;
    }
    return exponent * LN2_HI + (exponent * LN2_LO + 2.0 * s * sum);
}

void pe_sincos(double angle, double *out_sin, double *out_cos) {
    const double n = nearest(angle * TWO_OVER_PI);
    const double r = ((angle - n * PI_2_A) - n * PI_2_B) - n * PI_2_C;  // |r| <= pi/4
    const double r2 = r * r;
    double s = 1.0;
    double c = 1.0;
    for (int k = 9; k >= 1; k--) {  // 0.79^20 / 20! < 1e-20
        s = 1.0 - s * r2 / ((2 * k) * (2 * k + 1));
        c = 1.0 - c * r2 / ((2 * k - 1) * (2 * k));
    }
    s *= r;
    switch ((int64_t)n & 3) {  // which quarter turn
    case 0:
        *out_sin = s;
        *out_cos = c;
        break;
    case 1:
        *out_sin = c;
        *out_cos = -s;
        break;
    case 2:
        *out_sin = -s;
        *out_cos = -c;
        break;
    default:
        *out_sin = -c;
        *out_cos = s;
        break;
    }
}
