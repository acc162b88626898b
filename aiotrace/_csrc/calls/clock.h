/* The time of a call, in nanoseconds of CLOCK_MONOTONIC.
 *
 * Reading it twice would be most of what a call costs. Where the kernel itself makes it from the TSC, it is read each
 * WINDOW, and in between the TSC goes on from there at the rate of the windows before:
 *
 *     mono |---------------|---------------|         now = mono + ticks * rate
 *          ^ read           ^ read, new rate
 *
 * The law: a clock never tells less than it told before. Each thread has one of its own, on its stack.
 */
#ifndef AIOTRACE_FUNCTION_CLOCK_H
#define AIOTRACE_FUNCTION_CLOCK_H

#include "ring/cursor.h"

#define WINDOW (1u << 21) /* ticks: about a millisecond */

typedef struct {
    uint64_t tick;
    uint64_t mono; /* ns, at `tick`; not less than what was told before */
    uint64_t rate; /* ns a tick, in 2**-32; 0: not known yet */
} Clock;

#pragma GCC visibility push(hidden)

/* the kernel makes CLOCK_MONOTONIC from it: so it is constant, and the same on all processors */
extern int aiotrace_calls_have_tsc;

/* Where the window has ended, or the rate is not known. */
uint64_t aiotrace_read_both_clocks(Clock *clock);

#pragma GCC visibility pop

#if HAVE_TSC

static inline uint64_t
scale(uint64_t ticks, uint64_t rate)
{
    return (uint64_t)(((unsigned __int128)ticks * rate) >> 32);
}

#endif

static inline uint64_t
read_time(Clock *clock)
{
#if HAVE_TSC
    if (likely(aiotrace_calls_have_tsc)) {
        uint64_t ticks = __rdtsc() - clock->tick;
        if (likely(ticks < WINDOW && clock->rate != 0))
            return clock->mono + scale(ticks, clock->rate);
        return aiotrace_read_both_clocks(clock);
    }
#endif
    (void)clock;
    return aiotrace_event_now();
}

#endif
