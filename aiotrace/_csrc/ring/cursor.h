/* A writer's place on its page, for C that writes a record per call: what is kept of it, and how a record is stored.
 *
 *     aiotrace_lease -> only -> page + end: | record | record | ........................ |
 *                                                    ^ reserve: a place      ^ limit      commit: `end` goes on
 *
 * The laws: one step under the GIL from the look at `limit` to `commit`, no Python in between; and a lease is good while
 * its epoch is the present one. cursor.c and thread_lease.c make these; events/event.c, and others that store records, use them.
 */
#ifndef AIOTRACE_CURSOR_H
#define AIOTRACE_CURSOR_H

#include "common/common.h"

#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#define HAVE_TSC 1
#else
#define HAVE_TSC 0
#endif

#define PAGE_HEADER 16
#define SHORT_PAYLOAD_MAX 112
#define DELTA_BITS AIOTRACE_TIME_DELTA_BITS
#define DELTA_MAX AIOTRACE_TIME_DELTA_MAX
#define TIME_EXTEND ((uint32_t)AIOTRACE_TYPE_TIME_EXTEND)

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* glibc keeps room for a pointer of a module that is loaded late: it is found without a call then. */
#ifdef __GLIBC__
#define AIOTRACE_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define AIOTRACE_THREAD_LOCAL __thread
#endif

enum { CLOCK_PYTHON = 0, CLOCK_MONO = 1, CLOCK_TSC = 2 };

typedef struct {
    PyObject_HEAD
    char *page; /* NULL: no page */
    uint32_t end;
    uint32_t limit;
    uint64_t last; /* ns */
    uint64_t written;
    int clock_kind;
    uint32_t page_size;
    uint64_t tsc_base; /* the tick at which it was `mono_base` */
    uint64_t mono_base;
    uint64_t cut;
    PyObject *clock;
    Py_buffer view;
} Cursor;

/* The writers of a thread. */
typedef struct {
    PyObject_VAR_HEAD
    uint64_t epoch;
    int32_t pid; /* of a record: the task's that runs, if there is one, else the thread's */
    int32_t thread_pid;
    Cursor *only; /* if there is one, and its clock needs no Python; or NULL */
    Cursor *cursors[];
} Lease;

#pragma GCC visibility push(hidden)

enum { GATE_RECORDING = 1, GATE_STRICT = 2 };

/* Whether any recording is open, whether wrong values are errors; 0: an event has nothing to do. */
extern int aiotrace_gate;
/* The number of the present set of recordings. */
extern uint64_t aiotrace_epoch;
/* clock_gettime, without libc's own steps on the way to the kernel's where that can be. */
extern int (*aiotrace_clock_gettime)(clockid_t, struct timespec *);
/* Nanoseconds per TSC tick, in 2**-32: 0 until `tsc_calibrate` was called. */
extern uint64_t aiotrace_tsc_multiplier;
/* The calling thread's; NULL: it has none. */
extern AIOTRACE_THREAD_LOCAL Lease *aiotrace_lease;
/* The pid of the task that runs in it; 0: none, or nobody says. */
extern AIOTRACE_THREAD_LOCAL int32_t aiotrace_task;

extern PyTypeObject *aiotrace_cursor_type;

/* An event's id; and the epoch in which all open recordings take it always, or 0: then it has to be called. */
int aiotrace_event_id(PyObject *event);
const uint64_t *aiotrace_event_plain_epoch(PyObject *event);

#pragma GCC visibility pop

/* aiotrace_set_task, without a call. */
static inline void
set_task(int32_t pid)
{
    Lease *lease = aiotrace_lease;
    aiotrace_task = pid;
    if (lease != NULL)
        lease->pid = pid ? pid : lease->thread_pid;
}

static inline uint64_t
monotonic_ns(void)
{
    struct timespec now;
    aiotrace_clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void
anchor(Cursor *self)
{
#if HAVE_TSC
    self->tsc_base = __rdtsc();
#endif
    self->mono_base = monotonic_ns();
}

/* The time, for a clock that needs no Python. The TSC is anchored to CLOCK_MONOTONIC on each page and after each
 * pause that a time extend is needed for, so it never strays further from it than it can in 134 ms. */
static inline uint64_t
now_ns(Cursor *self)
{
#if HAVE_TSC
    if (self->clock_kind == CLOCK_TSC) {
        uint64_t ticks = __rdtsc() - self->tsc_base;
        uint64_t now = self->mono_base + (uint64_t)(((unsigned __int128)ticks * aiotrace_tsc_multiplier) >> 32);
        if (likely(now - self->last <= DELTA_MAX))
            return now;
        anchor(self);
        return self->mono_base;
    }
#endif
    return monotonic_ns();
}

/* Begin a record: its header, and a time extend in front where it needs one. Returns where the payload goes, or NULL
 * if there is no room. `*end` is where the record ends; nothing is visible before `commit`. */
static inline char *
reserve(Cursor *self, uint64_t *now, uint32_t size, uint32_t *end)
{
    uint64_t delta = *now - self->last;
    uint32_t head = size <= SHORT_PAYLOAD_MAX ? 4 : 8;
    if (unlikely(delta > DELTA_MAX)) {
        if ((int64_t)delta < 0) { /* a clock that went backwards */
            *now = self->last;
            delta = 0;
        }
        else {
            head += 8;
        }
    }
    if (unlikely(size > self->limit || self->end + head + size > self->limit))
        return NULL;
    uint32_t *words = (uint32_t *)(self->page + self->end);
    if (unlikely(delta > DELTA_MAX)) {
        *words++ = TIME_EXTEND | (uint32_t)(delta & DELTA_MAX) << 5;
        *words++ = (uint32_t)(delta >> DELTA_BITS);
        delta = 0;
    }
    if (size <= SHORT_PAYLOAD_MAX) {
        *words++ = size >> 2 | (uint32_t)delta << 5;
    }
    else {
        *words++ = (uint32_t)delta << 5;
        *words++ = size + 4;
    }
    *end = self->end + head + size;
    return (char *)words;
}

enum { AHEAD = 512 }; /* bytes: some 15 events */

/* A sink's thread has read the page, so its lines are shared with another processor, and each has to be asked for before
 * it can be written: in time, so that no event waits for it. It may be behind the page's end: this reads nothing. */
static inline void
prefetch(const Cursor *self, uint32_t end)
{
    const uintptr_t at = (uintptr_t)self->page + end + AHEAD;
#if defined(__x86_64__)
    __asm__ volatile("prefetchw (%0)" : : "r"(at)); /* the compiler's own asks for it unshared only where told to */
#else
    __builtin_prefetch((const void *)at, 1);
#endif
}

static inline void
commit(Cursor *self, uint64_t now, uint32_t end)
{
    self->last = now;
    self->end = end;
    self->written++;
    prefetch(self, end);
    __atomic_store_n((uint64_t *)(self->page + 8), (uint64_t)(end - PAGE_HEADER), __ATOMIC_RELEASE);
}

#endif
