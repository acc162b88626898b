/* The time of a call, once in a window: both clocks are read, and the rate between them is learnt.
 *
 * The law: what is told goes on from what was told, never back, though CLOCK_MONOTONIC may turn out to be behind it.
 */
#include "calls/clock.h"

#define APART_MAX 1024 /* ticks that one look at both clocks takes: else somebody came between */

HOT_DATA int aiotrace_calls_have_tsc;

#if HAVE_TSC

uint64_t
aiotrace_read_both_clocks(Clock *clock)
{
    uint64_t before = __rdtsc(), mono = monotonic_ns(), apart = __rdtsc() - before, tick = before + apart / 2;
    uint64_t ticks = tick - clock->tick;
    uint64_t told = clock->rate ? clock->mono + scale(ticks < WINDOW ? ticks : WINDOW, clock->rate) : 0;
    if (mono < told)
        mono = told;
    if (apart > APART_MAX || (clock->tick != 0 && ticks < WINDOW))
        return mono;
    /* After a pause of hours, or a counter that was set back, the rate is learnt anew. */
    int can_tell = clock->tick != 0 && ticks < (uint64_t)1 << 40 && mono > clock->mono;
    clock->rate = can_tell ? (uint64_t)(((unsigned __int128)(mono - clock->mono) << 32) / ticks) : 0;
    clock->tick = tick;
    clock->mono = mono;
    return mono;
}

#endif
