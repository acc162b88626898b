/* An LTTng-UST tracepoint of the same three numbers. Included several times over, as LTTng has it, from its own folder:
 * a file called tracepoint.h would be LTTng's.
 */
#undef LTTNG_UST_TRACEPOINT_PROVIDER
#define LTTNG_UST_TRACEPOINT_PROVIDER aiotrace_benchmark

#undef LTTNG_UST_TRACEPOINT_INCLUDE
#define LTTNG_UST_TRACEPOINT_INCLUDE "three_tracepoint.h"

#if !defined(AIOTRACE_TRACEPOINT_H) || defined(LTTNG_UST_TRACEPOINT_HEADER_MULTI_READ)
#define AIOTRACE_TRACEPOINT_H

#include <lttng/tracepoint.h>

LTTNG_UST_TRACEPOINT_EVENT(
    aiotrace_benchmark, three,
    LTTNG_UST_TP_ARGS(uint64_t, first, int64_t, second, double, third),
    LTTNG_UST_TP_FIELDS(lttng_ust_field_integer(uint64_t, first, first)
                        lttng_ust_field_integer(int64_t, second, second)
                        lttng_ust_field_float(double, third, third)))

#endif

#include <lttng/tracepoint-event.h>
