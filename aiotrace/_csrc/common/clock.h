/* CLOCK_MONOTONIC in nanoseconds: read from the kernel, or extrapolated from the processor's time
 * stamp counter (TSC).
 *
 *     kernel |---------------|---------------|         aiotrace_read_tsc() = ns + ticks since then * rate
 *            ^ anchor         ^ anchor (5 to 8 milliseconds later)
 *
 * Reading the TSC takes a third of the time of a call into the kernel's clock, and a traced step or
 * call of a function reads the time twice. One anchor serves the process: events with clock="tsc",
 * steps of tasks and calls of functions.
 *
 * Invariants:
 * - What `aiotrace_read_tsc` returns never decreases, in no thread and across threads. All its
 *   callers hold the GIL.
 * - It is off the kernel's clock by at most the error of one reading (some 50 ns) and what the
 *   counter strays within WINDOW, some 20 ns: the rate is measured again at an anchor when the last
 *   measurement is 20 ms old.
 * - Until the rate is known, and where the TSC has no constant rate, each call reads the kernel's
 *   clock.
 */
#ifndef AIOTRACE_CLOCK_H
#define AIOTRACE_CLOCK_H

#include "common/common.h"

#include <time.h>

#if defined(__x86_64__)
#include <x86intrin.h>
#define HAVE_TSC 1
#else
#define HAVE_TSC 0
#endif

#pragma GCC visibility push(hidden)

/* The anchor, and how to go on from it. */
typedef struct {
    uint64_t tick, ns;
    uint64_t rate;   /* nanoseconds per tick, in units of 2**-32 */
    uint64_t window; /* ticks for which the anchor is good; 0: the rate is not known */
} TscClock;

extern TscClock aiotrace_tsc;

/* clock_gettime; the kernel's own function (vDSO) without libc's wrapper where that is possible. */
extern int (*aiotrace_clock_gettime)(clockid_t, struct timespec *);

/* Anchor the clock again, and return the time. */
uint64_t aiotrace_anchor_tsc(void);

/* CLOCK_MONOTONIC, for callers that are not in a hurry. Needs no GIL. */
uint64_t aiotrace_monotonic_ns(void);

#pragma GCC visibility pop

/* CLOCK_MONOTONIC. Needs no GIL. */
static inline uint64_t
monotonic_ns(void)
{
    struct timespec now;
    aiotrace_clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* CLOCK_MONOTONIC, by the TSC where that is possible. Needs the GIL. */
static inline uint64_t
aiotrace_read_tsc(void)
{
#if HAVE_TSC
    uint64_t ticks = __rdtsc() - aiotrace_tsc.tick;
    if (likely(ticks < aiotrace_tsc.window))
        return aiotrace_tsc.ns + (ticks * aiotrace_tsc.rate >> 32); /* fits: WINDOW is 2**24 ticks */
#endif
    return aiotrace_anchor_tsc();
}

#endif
