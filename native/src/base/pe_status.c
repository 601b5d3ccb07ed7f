#include "pe_status.h"

#include <stdarg.h>
#include <stdio.h>

void pe_error_set(pe_error *err, pe_status code, const char *format, ...) {
    if (err == NULL) {
        return;
    }
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    err->code = code;
}

uint32_t pe_api_version(void) {
    return PE_API_VERSION;
}
