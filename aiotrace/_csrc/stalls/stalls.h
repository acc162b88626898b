/* The watch over stalls: notices that a step lasts too long, while it lasts. _tracers/stall.py
 * starts it.
 *
 *   a thread   begins a step ............................ ends it: stall:end, if it was noticed      has the GIL
 *                 |  stores: since when, which             ^
 *   watcher       +--- polls ---- polls --- notices: stall:noticed, on a page of its own             never has it
 *                        | requests            | requests
 *   sampler              +-- waits for the GIL +-- waits for the GIL, reads the stack: stall:stack
 *
 *   steps.c           a thread's steps          watcher.c         notices stalls     causes.c       why it lasted
 *   stack_sampler.c   reads the stack           watcher_cursor.c  the watcher's page start_stop.c   start and stop
 *   watch.h           what the task tracer calls
 *
 * The watcher is a thread of C alone: it has no Python thread state, it never takes the GIL, and
 * interpreter shutdown does not affect it. The stack sampler is a daemon thread of Python
 * (stall_next). How long it waits for the GIL shows what kind of code holds it: Python code
 * releases it within the switch interval, a call into C when it is done.
 *
 * Invariants:
 * - A step costs a few stores of its own thread, and no lock. `lock` protects all else; its holder
 *   never blocks.
 * - The end of a noticed step is always recorded: the watcher stores "noticed", makes that visible
 *   to all threads, and reads the step again; if it has ended by then it was not noticed. (Its
 *   thread may record the end of it all the same.)
 * - A stack belongs to the step that was noticed: the step is compared, and the frames are read, in
 *   one stretch in which no other thread can have the GIL.
 */
#ifndef AIOTRACE_STALL_H
#define AIOTRACE_STALL_H

#include "common/common.h"
#include "events/event.h"
#include "ring/cursor.h"
#include "stalls/watch.h"

#include <pthread.h>

#define load_acquire(word) __atomic_load_n(word, __ATOMIC_ACQUIRE)
#define store_release(word, value) __atomic_store_n(word, value, __ATOMIC_RELEASE)

#define CURSORS_MAX 8      /* recordings that the watcher writes to by itself */
#define PAUSE_MIN 1000000u /* ns: the watcher rests at least as long */

/* --- what is known of a thread -------------------------------------------------------------------------- */

/* How a thread spent its time, up to a moment. */
typedef struct {
    uint64_t ns;
    uint64_t cpu_ns;
    uint64_t delay_ns; /* ready to run, but no processor was free */
    uint64_t slices;   /* how often it was put on a processor */
    uint64_t gc_ns;
    uint64_t late_ns; /* how much too late the watcher itself has woken */
} Sample;

/* How the sampler waited for the GIL. */
typedef struct {
    uint64_t count, longest_ns;
    uint64_t asked_ns; /* in all, less what the kernel kept the sampler from requesting it */
    uint64_t held_ns;  /* of that, how long the stalled thread ran */
} Waits;

typedef struct Slot {
    /* By its thread alone; others load. */
    uint64_t sequence; /* odd: a step runs, and this is its number */
    uint64_t began;
    int32_t task;
    int depth; /* steps within steps: the outermost counts */
    PyThreadState *state;
    uint64_t gc_ns, gc_began;
    uint64_t noticed; /* the step that was, by the watcher */
    /* Under the lock. */
    int is_free; /* its thread has ended */
    int32_t thread;
    uint64_t sampled; /* the step that `first` is of */
    Sample first;
    uint64_t probed; /* the step for which the sampler shall request the GIL; 0: none */
    Waits waits;     /* of the sampler, in the step that was sampled */
    struct {
        uint64_t ns; /* 0: it does not wait */
        uint64_t cpu_ns, delay_ns;
    } waiting; /* since when, and what this thread and the sampler had spent by then */
    struct {
        uint64_t step; /* 0: nothing to report */
        uint64_t began, lasted;
        int32_t task;
        int cause, is_written;
    } pending_report; /* for the sampler */
    struct Slot *next;
} Slot;

/* --- a page of the watcher's own ---------------------------------------------------------------------------- */

/* A writer's place on its page, as Cursor is, that a thread without the GIL writes to: everything
 * under the lock. */
typedef struct {
    PyObject_HEAD
    RecordCursor at;
    uint64_t dropped;
    int is_closed;
    Py_buffer view;
} WatcherCursor;

static inline uint32_t
room_of(const WatcherCursor *cursor)
{
    const RecordCursor *at = &cursor->at;
    return at->end < at->limit ? at->limit - at->end : 0;
}

/* --- what the parts share ------------------------------------------------------------------------------------ */

/* Of the process. Under the lock, but what is said to be otherwise. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t change; /* for the watcher; on CLOCK_MONOTONIC */
    pthread_cond_t work;   /* for the sampler */
    Slot *slots;
    uint64_t run; /* how often the watch was started; the sampler of an older one ends */
    int is_stopping;
    uint64_t threshold;
    uint64_t late_ns;  /* by which the watcher has woken too late, in all; its own */
    uint64_t interval; /* in which Python code gives up the GIL to who asks for it, ns */
    int sampler_waits;   /* for the GIL */
    int32_t sampler;     /* its thread */
    int has_work;
    WatcherCursor *cursors[CURSORS_MAX]; /* held */
    int cursors_count, writes_itself;
    uint16_t noticed_id; /* of stall:noticed; set before the watcher is */
    PyObject *end_event; /* stall:end; the GIL's */
} Stalls;

enum { PYTHON, C_CALL, GC, GIL, BLOCKED, SCHEDULER, UNKNOWN, CAUSES };

typedef struct {
    PyObject *text;
    uint64_t key;
} Cause;

static inline uint64_t
since(uint64_t from, uint64_t to)
{
    return to > from ? to - from : 0;
}

#pragma GCC visibility push(hidden)

extern Stalls aiotrace_stalls;
/* as _tracers/stall.py's CAUSES, in that order; set before the watcher is */
extern Cause aiotrace_stall_causes[CAUSES];
extern PyTypeObject *aiotrace_watcher_cursor_type;

/* watcher_cursor.c: write a record; what finds no room is counted. Under the lock; no GIL. */
void aiotrace_watcher_put(WatcherCursor *cursor, uint64_t now, const void *payload, uint32_t size);

/* causes.c: how a thread has spent its time until now. */
Sample aiotrace_stall_sample(const Slot *slot);

/* What most of the time went into between two samples: PYTHON to UNKNOWN.
 *
 *     waits  the sampler's, in between
 *     state  of the thread now (aiotrace_stall_thread_state), if it is not the one that asks; or 0 */
int aiotrace_stall_judge(const Sample *first, const Sample *last, const Waits *waits, char state);

/* "S" sleeps, "R" runs or wants to; 0: not known. */
char aiotrace_stall_thread_state(int32_t thread);

/* The sampler waits for the GIL from now on; its waits in the step that runs in a slot, with the
 * present one. Under the lock. */
void aiotrace_stall_begin_waiting(Slot *slot, uint64_t now);
Waits aiotrace_stall_waits_until(const Slot *slot, uint64_t now);

/* watcher.c: the watcher, until `is_stopping`. */
void *aiotrace_stall_watch(void *ignored);

/* steps.c: what a forked child has left of the threads. */
void aiotrace_stall_forget_threads(void);

int aiotrace_stack_sampler_exec(PyObject *module);
int aiotrace_watcher_cursor_exec(PyObject *module);
int aiotrace_stall_steps_exec(PyObject *module);

#pragma GCC visibility pop

#endif
