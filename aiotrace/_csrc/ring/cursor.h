/* Writing records onto a page, in place: the cursor of a writer, and the lease that gives a thread
 * its writers.
 *
 *     aiotrace_lease -> only -> page + end: | record | record | ......................... |
 *                                           begin_record: a place  ^     commit: `end` moves     ^ limit
 *
 * Invariants:
 * - From the check against `limit` to `commit` is one step under the GIL (a watcher's cursor: under
 *   its lock), without Python code in between. Nothing is visible before `commit`.
 * - A lease is valid while its epoch is the present one.
 */
#ifndef AIOTRACE_CURSOR_H
#define AIOTRACE_CURSOR_H

#include "common/clock.h"
#include "common/common.h"

/* A place on a page. */
typedef struct {
    char *page; /* NULL: no page */
    uint32_t end;
    uint32_t limit; /* 0: nothing fits */
    uint64_t last;  /* time of the last record, ns */
    uint64_t written;
    uint32_t page_size;
} RecordCursor;

enum { CLOCK_PYTHON = 0, CLOCK_MONO = 1, CLOCK_TSC = 2 };

/* The cursor of a writer: an object of Python. */
typedef struct {
    PyObject_HEAD
    RecordCursor at;
    int clock_kind;
    uint64_t cut;
    PyObject *clock;
    Py_buffer view;
} Cursor;

/* The writers of a thread. */
typedef struct {
    PyObject_VAR_HEAD
    uint64_t epoch;
    int32_t pid; /* what records carry as common_pid: the running task's if tasks are traced, else the thread's */
    int32_t thread_pid;
    Cursor *only; /* the writer, if there is one and its clock is not a Python function; or NULL */
    Cursor *cursors[];
} Lease;

#pragma GCC visibility push(hidden)

enum { GATE_RECORDING = 1, GATE_STRICT = 2 };

/* Whether any recording is open, whether wrong values are errors; 0: an event has nothing to do. */
extern int aiotrace_gate;
/* The number of the present set of recordings. */
extern uint64_t aiotrace_epoch;
/* The calling thread's; NULL: it has none. */
extern THREAD_LOCAL Lease *aiotrace_lease;
/* The pid of the task that runs in the calling thread; 0: none, or tasks are not traced. */
extern THREAD_LOCAL int32_t aiotrace_task;

extern PyTypeObject *aiotrace_cursor_type;

int aiotrace_is_recording(void);

#pragma GCC visibility pop

/* Records of this thread carry this common_pid from now on; 0: the thread's own. */
static inline void
set_task(int32_t pid)
{
    Lease *lease = aiotrace_lease;
    aiotrace_task = pid;
    if (lease != NULL)
        lease->pid = pid ? pid : lease->thread_pid;
}

/* The time, for a clock that is not a Python function. */
static inline uint64_t
now_ns(const Cursor *self)
{
    return self->clock_kind == CLOCK_TSC ? aiotrace_read_tsc() : monotonic_ns();
}

/* Begin a record of the common case: a short payload, and no time extend in front.
 *
 *     now    at or after the last record's time
 *     size   of the payload: a multiple of 4, at most AIOTRACE_SHORT_PAYLOAD_MAX
 *
 * Returns where the payload goes, or NULL if there is no room or more than the common case is
 * needed. */
static inline __attribute__((always_inline)) char *
begin_record(const RecordCursor *at, uint64_t now, uint32_t size)
{
    uint64_t delta = now - at->last;
    if (unlikely(delta > AIOTRACE_TIME_DELTA_MAX || at->end + 4 + size > at->limit))
        return NULL;
    uint32_t *header = (uint32_t *)(at->page + at->end);
    *header = size >> 2 | (uint32_t)delta << AIOTRACE_TYPE_LEN_BITS;
    return (char *)(header + 1);
}

/* Begin a record of any size, after a time extend if it needs one. `*now` becomes the last record's
 * time if it is before that. Returns where the payload goes, and in `*end` where the record ends;
 * NULL if there is no room. */
static inline char *
reserve(const RecordCursor *at, uint64_t *now, uint32_t size, uint32_t *end)
{
    if (size <= AIOTRACE_SHORT_PAYLOAD_MAX) {
        char *payload = begin_record(at, *now, size);
        if (likely(payload != NULL)) {
            *end = at->end + 4 + size;
            return payload;
        }
    }

    /* The time may lie before the last record's, if the clocks of the two differ. */
    uint64_t delta = *now - at->last;
    if ((int64_t)delta < 0) {
        *now = at->last;
        delta = 0;
    }
    int is_extended = delta > AIOTRACE_TIME_DELTA_MAX;
    uint32_t head = (size <= AIOTRACE_SHORT_PAYLOAD_MAX ? 4 : 8) + (is_extended ? 8 : 0);
    if (size > at->limit || at->end + head + size > at->limit)
        return NULL;

    uint32_t *words = (uint32_t *)(at->page + at->end);
    if (is_extended) {
        *words++ = AIOTRACE_TYPE_TIME_EXTEND | (uint32_t)(delta & AIOTRACE_TIME_DELTA_MAX) << AIOTRACE_TYPE_LEN_BITS;
        *words++ = (uint32_t)(delta >> AIOTRACE_TIME_DELTA_BITS);
        delta = 0;
    }
    if (size <= AIOTRACE_SHORT_PAYLOAD_MAX) {
        *words++ = size >> 2 | (uint32_t)delta << AIOTRACE_TYPE_LEN_BITS;
    }
    else {
        *words++ = (uint32_t)delta << AIOTRACE_TYPE_LEN_BITS;
        *words++ = size + 4;
    }
    *end = at->end + head + size;
    return (char *)words;
}

enum { AHEAD = 512 }; /* bytes: some 15 events */

/* Ask for the cache line that is written in a few events. A sink's thread has read the page, so its
 * lines are shared with another processor, and an event would wait for each. The address may lie
 * behind the page: nothing is read. */
static inline void
prefetch(const RecordCursor *at, uint32_t end)
{
    const uintptr_t line = (uintptr_t)at->page + end + AHEAD;
#if defined(__x86_64__)
    __asm__ volatile("prefetchw (%0)" : : "r"(line)); /* __builtin_prefetch emits it only with -mprfchw */
#else
    __builtin_prefetch((const void *)line, 1);
#endif
}

/* Make the record that ends there visible. */
static inline void
commit(RecordCursor *at, uint64_t now, uint32_t end)
{
    at->last = now;
    at->end = end;
    at->written++;
    prefetch(at, end);
    __atomic_store_n((uint64_t *)(at->page + 8), (uint64_t)(end - AIOTRACE_PAGE_HEADER_SIZE), __ATOMIC_RELEASE);
}

/* Begin an empty page. `now`: its time. */
static inline void
begin_page(RecordCursor *at, char *page, uint32_t size, uint64_t now)
{
    ((uint64_t *)page)[0] = now;
    ((uint64_t *)page)[1] = 0;
    at->page = page;
    at->page_size = size;
    at->last = now;
    at->end = AIOTRACE_PAGE_HEADER_SIZE;
    at->limit = size - AIOTRACE_LOST_COUNT_SIZE;
}

/* Have no page. */
static inline void
leave_page(RecordCursor *at)
{
    at->page = NULL;
    at->page_size = at->end = at->limit = 0;
    at->last = 0;
}

/* Let records fit again on the page, if there is one. */
static inline void
open_page(RecordCursor *at)
{
    at->limit = at->page == NULL ? 0 : at->page_size - AIOTRACE_LOST_COUNT_SIZE;
}

/* Bytes of records on the page. */
static inline uint32_t
committed_of(const RecordCursor *at)
{
    return at->end < AIOTRACE_PAGE_HEADER_SIZE ? 0 : at->end - AIOTRACE_PAGE_HEADER_SIZE;
}

/* Whether a payload has room, with a time extend in front. */
static inline int
has_room(const RecordCursor *at, Py_ssize_t size)
{
    return size <= AIOTRACE_PAGE_SIZE_MAX && (uint64_t)at->end + (uint64_t)size + 16 <= at->limit;
}

#endif
