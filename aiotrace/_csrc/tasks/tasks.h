/* What the files of the tracer of tasks share; start_stop.c says what it is and which laws it keeps.
 *
 *     start_stop.c            start and stop
 *     asyncio_handle.c     asyncio: Handle       uvloop.c  uvloop: call_soon       trio.c  trio: Task._create
 *     asyncio_iterations.c       iterations of asyncio's loops
 *     asyncio_task.c    asyncio's tasks, from within: where they hold their coroutine; who asks for their cancellation
 *     coroutine_proxy.c  what stands for the coroutine of a task that is known
 *     step.c       a task is made ready, its step begins, is sent what it is sent, ends
 *     sched_switch.c     the same as the kernel's sched_switch and sched_waking
 *     registry.c      the tasks that are known, their ids, their spawn; keyframes
 *     names.c      names of code, lines and types; where the program is; what a task waits for
 *
 * Each calls those below it alone. Nothing here is seen outside of the module.
 */
#ifndef AIOTRACE_TASK_H
#define AIOTRACE_TASK_H

#include "ring/cursor.h"

#include <stddef.h>
#include <structmember.h>

#define THREAD_LOCAL AIOTRACE_THREAD_LOCAL

#pragma GCC visibility push(hidden)

/* --- time (start_stop.c) -------------------------------------------------------------------------------------- */

#define ANCHOR_NS 100000000u     /* CLOCK_MONOTONIC is read again at least this often */
#define CALIBRATION_NS 20000000u /* it is read to some 50 ns, so the counter's rate is known to a few millionths */

typedef struct {
    int is_constant;     /* whether the processor's counter has a constant rate */
    uint64_t first_tick; /* of the calibration; `first_ns` belongs to it */
    uint64_t first_ns;
    uint64_t tick, ns;  /* the anchor */
    uint64_t multiplier; /* nanoseconds a tick, in 2**-32; 0: not known yet, or the rate is not constant */
} Counter;

extern Counter counter;

uint64_t anchor_clock(void); /* read CLOCK_MONOTONIC, and go on from there */

/* CLOCK_MONOTONIC in nanoseconds, mostly by the processor's counter: two readings a step are what it costs most. May
 * go backwards by what the counter has strayed in ANCHOR_NS. */
static inline uint64_t
task_clock(void)
{
#if HAVE_TSC
    uint64_t multiplier = counter.multiplier;
    if (likely(multiplier)) {
        uint64_t passed = (uint64_t)(((unsigned __int128)(__rdtsc() - counter.tick) * multiplier) >> 32);
        if (likely(passed < ANCHOR_NS))
            return counter.ns + passed;
    }
#endif
    return anchor_clock();
}

void start_clock(void);

/* --- what Python gave us (start_stop.c) ------------------------------------------------------------------- */

enum { SPAWN, NAME, READY, STEP, DONE, CANCEL, DELIVERED, CAUGHT, SWALLOWED, ALIVE, EVENTS };
extern PyObject *events[EVENTS];

extern PyObject *describe;     /* (code or type, line) -> (text, key, flags) */
extern PyObject *name_command; /* (pid, name) */
extern PyObject *find_line;    /* (coroutine) -> text: where it is suspended */
extern PyObject *find_inner;   /* (coroutine) -> the coroutine that one of a library's stands for, or None */
extern PyObject *report;       /* (handle, exception): what events.Handle does of an exception */
extern PyObject *current_tasks; /* loop -> the task whose step runs, as asyncio has it */
extern PyTypeObject *task_type; /* _asyncio.Task */
extern PyObject *cancelled_error, *trio_cancelled;
extern PyTypeObject *trio_error; /* outcome.Error */

extern int is_active;

/* --- doors (names.c) ------------------------------------------------------------------------------- */

/* A way to read something of an object that costs no look-up, if it is of the type that the way was found on. */
typedef struct {
    const char *text;
    int is_call;
    PyObject *name;
    PyCFunction method;
    getter get;
    void *closure;
    Py_ssize_t offset; /* of an object in the object; 0: it is not so simple */
} Door;

extern Door door_waiter, door_must_cancel, door_exception, door_done, door_cancelled, door_cancelling, door_name, door_code,
            door_suspended, door_frame, door_trio_name;

int open_door(Door *door, PyTypeObject *type);
int door_is_true(const Door *door, PyObject *object, int is_known);

/* A new reference, or NULL without an exception. `is_known`: the object is of the type that the door was opened on. */
static inline PyObject *
read_door(const Door *door, PyObject *object, int is_known)
{
    PyObject *value;
    if (is_known && door->offset)
        return Py_XNewRef(*(PyObject **)((char *)object + door->offset));
    if (likely(is_known && door->get != NULL))
        value = door->get(object, door->closure);
    else if (likely(is_known && door->method != NULL))
        value = door->method(object, NULL);
    else if (door->is_call)
        value = PyObject_CallMethodNoArgs(object, door->name);
    else
        value = PyObject_GetAttr(object, door->name);
    if (unlikely(value == NULL))
        PyErr_Clear();
    return value;
}

static inline int
is_fast(PyObject *task)
{
    return task_type != NULL && PyObject_TypeCheck(task, task_type);
}

/* --- names of code and types (names.c) ---------------------------------------------------------- */

enum { IS_LIBRARY = 1, IS_TRAP = 2, IS_OURS = 4 };

typedef struct {
    PyObject *object; /* held: a code object or a type */
    int place;        /* of code: the offset of an instruction, and 1; 0: the whole of it */
    int flags;
    uint64_t key;
    PyObject *text;
} Name;

extern Name unknown_name; /* "?" */
extern Name name_yield, name_done, name_nothing, name_returned, name_raised, name_cancelled, name_lost;
extern size_t names_used;

Name find_name(PyObject *object, int place);
Name find_site(void);
Name name_coroutine(PyObject *coroutine);
int take_name(Name *name, const char *text);
PyObject *text_of(const Name *name);
PyObject *name_of(PyObject *task, int runtime);
int is_cancelled_error(PyObject *error);
/* --- records (names.c) ------------------------------------------------------------------------------ */

void call_event(PyObject *event, int count, PyObject **arguments);

#define EMIT(event, ...)                                                                      \
    do {                                                                                      \
        PyObject *arguments_[] = {__VA_ARGS__};                                               \
        call_event(events[event], (int)(sizeof arguments_ / sizeof *arguments_), arguments_); \
    } while (0)

typedef struct {
    uint64_t off_in;   /* the epoch in which no recording was found to take the event */
    uint64_t plain_in; /* in which all were found to take it always */
    uint32_t id;
} Kind;

extern Kind kinds[EVENTS];

int look_whether_off(int event);
int look_whether_plain(int event);

static inline int
is_off(int event)
{
    return likely(kinds[event].off_in == aiotrace_epoch) || look_whether_off(event);
}

/* What a record of an event of numbers begins with; a struct of its fields, in their order, follows. */
#define RECORD_HEAD  \
    uint32_t header; \
    uint32_t kind;   \
    int32_t pid

/* Where a record of `size` bytes goes, its head written; NULL: not so simply (a full page, a filter, several
 * recordings), the event has to be called. The caller stores the rest there at once, and then calls `commit`. */
static inline __attribute__((always_inline)) void *
begin_record(int event, uint64_t now, uint32_t size, Cursor **writer)
{
    Lease *lease = aiotrace_lease;
    uint64_t epoch = aiotrace_epoch;
    if (unlikely(kinds[event].plain_in != epoch) && !look_whether_plain(event))
        return NULL;
    if (unlikely(lease == NULL || lease->epoch != epoch))
        return NULL;
    Cursor *cursor = lease->only;
    if (unlikely(cursor == NULL || cursor->clock_kind != CLOCK_MONO))
        return NULL;
    uint64_t delta = now - cursor->last;
    if (unlikely(delta > DELTA_MAX || cursor->end + size > cursor->limit))
        return NULL;
    struct { RECORD_HEAD; } *record = (void *)(cursor->page + cursor->end);
    record->header = (size - 4) >> 2 | (uint32_t)delta << 5;
    record->kind = kinds[event].id;
    record->pid = lease->pid;
    *writer = cursor;
    return record;
}

static inline void
end_record(Cursor *writer, uint64_t now, uint32_t size)
{
    commit(writer, now, writer->end + size);
}

/* --- the tasks that are known (registry.c) --------------------------------------------------------------- */

enum { ON_ASYNCIO, ON_TRIO };

/* What a coroutine that stands for a task's does: pass on what it is sent, as its task is not known (any more); that, as
 * aiotrace's own; trace. */
enum { PASSES, SILENT, TRACES };

#define COMM_SIZE 16 /* of the kernel's char comm[], its NUL included */

/* A task that is known: the object that stands for its coroutine, which the task holds. */
typedef struct Known {
    PyObject_HEAD
    /* For each step. */
    PyObject *inner; /* the coroutine */
    char state;
    char runtime;
    char has_run;      /* it was sent something through us */
    char is_named;     /* its pid is */
    char is_cancelled; /* a cancellation was delivered, and it is not known yet what became of it */
    char is_swallowed; /* the last one was, and that was told */
    uint32_t plain_in; /* its next step is plain in that round of `plain_round`; 0: in none */
    int32_t id;
    int32_t waker;     /* who made it ready */
    uint64_t ready_ns; /* when; 0: it was not, or nobody knows */
    PyObject *name;    /* as it was at its spawn, until its first step; held */
    PyObject *awaited_code; /* of the innermost coroutine at the end of its last step; borrowed, as the next */
    PyObject *awaited_by;   /* of the one that awaits that, if it has to do with the name of both; or NULL */
    uint64_t awaited_key;   /* that name */
    const PyObject *task;   /* only to be compared */
    /* Seldom. */
    PyObject *ref; /* weak, to the task */
    struct Known *next, *previous; /* in the ring of all that are known; NULL: it is not, or no more */
    PyObject *coroutine; /* its text; borrowed of the names */
    int32_t parent;
    int cancels;    /* requests to cancel it that were made */
    uint32_t round; /* of its last keyframe */
    char comm[COMM_SIZE]; /* its name, for switches; empty: not asked for yet */
} Known;

static inline PyObject *
referent(PyObject *ref)
{
    PyObject *object = ((PyWeakReference *)ref)->wr_object;
    return object == Py_None ? NULL : object;
}

/* A task that a factory is making: if it runs at once, it does so before anybody can know it. */
typedef struct Making {
    PyObject *coroutine;
    int32_t id, parent;
    PyObject *task; /* what the factory returned, when it has; borrowed */
    struct Making *outer;
} Making;

extern THREAD_LOCAL Making *making;
extern Py_ssize_t known_count;
extern int32_t first_id;  /* of this process */
extern int commands_left; /* pids that may be named until the next keyframe */
extern uint64_t round_due; /* when a step has to go on with the keyframe */

Known *know_task(PyObject *task, PyObject *coroutine, int runtime, int is_new);
void tell_spawn(Known *known, PyObject *task);
void forget_task(Known *known);
Known *first_known(void);
Known *next_known(const Known *known);
int32_t new_id(void);
int32_t base_id(void);
void begin_ids(uint32_t next);
void tell_name(Known *known);
void forget_names(void);
void name_pids(int most);
void tell_end(int32_t id, const Name *result, const Name *exception, uint64_t now);
void tell_alive(Known *known);
void begin_rounds(void);
void go_on_with_round(uint64_t now);
void write_whole_round(void);

/* --- switches (sched_switch.c) ---------------------------------------------------------------------------------- */

/* Who runs in a thread: a task, or the thread itself. */
typedef struct {
    int32_t pid;
    char comm[COMM_SIZE];
} Runner;

/* A switch to a task, until it is taken back. */
typedef struct {
    Runner before;
    char is_made;
} Switch;

enum { RUNS_ON = 0, WAITS = 1, ENDED = 0x10 }; /* prev_state as trace-cmd reads it: R, S, Z */

extern int tells_switches;

/* This thread turns from what runs under `previous` (0: itself) to a task of this pid, which is set then. `comm`:
 * COMM_SIZE bytes. */
void switch_in(Switch *made, int32_t previous, int32_t pid, const char *comm, uint64_t now);

/* And back. The pid is still the task's. */
void switch_out(Switch *made, int32_t pid, const char *comm, int state, uint64_t now);

/* --- steps (step.c) ------------------------------------------------------------------------------------- */

typedef struct {
    Known *known; /* held */
    uint64_t began;
    uint64_t ready_ns;
    int32_t waker;
    int32_t previous;
    char is_delivered;
    char is_watched;
    Switch made;
} Step;

/* What a step came to. */
typedef struct {
    PyObject *yielded; /* what it waits for now; NULL: it is done */
    PyObject *error;   /* that it ended by, if it did */
    char is_cancelled; /* and that is a cancellation */
} Outcome;

int state_after(const Outcome *outcome);
const char *comm_of(Known *known);
void tell_waking(Known *known);

/* A step, or a callback that is no task's (0), begins for the watch over stalls. Returns whether `end_watched` is due.
 *
 *     began   0: now */
static inline int
begin_watched(int32_t task, uint64_t began)
{
    return unlikely(aiotrace_is_watched) ? aiotrace_watch_begin(task, began) : 0;
}

static inline void
end_watched(int is_watched)
{
    if (unlikely(is_watched))
        aiotrace_watch_end();
}

extern uint32_t plain_round; /* goes on when what was plain may be so no more */
extern uint64_t steps_hooked[2]; /* that did not go the short way, so far, by runtime */
extern THREAD_LOCAL int is_preset; /* the task that runs was running when tracing began: its step has no end for us */

/* Find out whether the next step of a task will be plain. */
static inline void
look_at_next(Known *known)
{
    if (known->state == TRACES && !known->is_cancelled && known->name == NULL && (known->is_named || commands_left <= 0) &&
        !tells_switches && PyCoro_CheckExact(known->inner))
        known->plain_in = plain_round;
}

void tell_ready(Known *known, PyObject *loop);
PySendResult send_step(PyObject *self, PyObject *sent, PyObject **result);
void begin_known(Step *step, Known *known);
void end_step(Step *step, const Outcome *outcome);
void end_sent(Step *step, PyObject *yielded);
void tell_delivered(Step *step);
long count_cancels(PyObject *task);

/* A step of a task is scheduled in a loop, by what runs here. */
static inline void
made_ready(Known *known, PyObject *loop)
{
    if (known->ready_ns == 0 || unlikely(!is_off(READY))) /* else its own step has noted it at its end */
        tell_ready(known, loop);
}

/* --- coroutines (coroutine_proxy.c) --------------------------------------------------------------------------- */

extern PyTypeObject *coroutine_type;

Known *new_known(PyObject *inner, PyObject *ref);

/* --- asyncio's tasks (asyncio_task.c) ------------------------------------------------------------------------ */

extern Py_ssize_t coroutine_offset; /* in a task of task_type */
extern Py_ssize_t step_offset;      /* of the task in a step_type */
extern PyTypeObject *step_type;     /* TaskStepMethWrapper */

static inline PyObject **
coroutine_place(PyObject *task)
{
    return (PyObject **)((char *)task + coroutine_offset);
}

/* The task that a callback is a step of, if it is one of task_type itself and known; else NULL: look closer. */
static inline Known *
known_by_step(PyObject *callback)
{
    if (unlikely(Py_TYPE(callback) != step_type))
        return NULL;
    PyObject *task = *(PyObject **)((char *)callback + step_offset);
    if (unlikely(Py_TYPE(task) != task_type))
        return NULL;
    Known *known = (Known *)*coroutine_place(task);
    return likely(known != NULL && Py_TYPE(known) == coroutine_type && known->state != PASSES) ? known : NULL;
}

/* Whether a callback that is scheduled is a step that everything is known of already: it is ready since its last ended. */
static inline int
is_told(PyObject *callback)
{
    Known *known = known_by_step(callback);
    return known != NULL && known->ready_ns != 0 && kinds[READY].off_in == aiotrace_epoch;
}

void callback_scheduled(PyObject *callback, PyObject *loop);
int is_known_step(PyObject *callback);
Known *find_task(PyObject *task);
void unwrap_task(Known *known);
extern PyObject *cancel_watch;
void tell_watch(const Known *known, PyObject *task, PyObject *scope);
int enter_asyncio(PyObject *parts);
void leave_asyncio(void);

/* --- the hooks: each adds its functions to the module ------------------------------------------------------------- */

#define FREE_HANDLES 64 /* callbacks whose memory is kept */

int handle_exec(PyObject *module);
int uvloop_exec(PyObject *module);
int trio_exec(PyObject *module);
int loop_exec(PyObject *module);
int coroutine_exec(PyObject *module);
int switch_exec(PyObject *module);
int asyncio_exec(PyObject *module);

#pragma GCC visibility pop

#endif
