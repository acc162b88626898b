/* What the files of the tracer of tasks share; task.c says what it is and which laws it keeps.
 *
 *     task.c            start and stop
 *     task_handle.c     asyncio: Handle       task_uvloop.c  uvloop: call_soon       task_trio.c  trio: Task._create
 *     task_loop.c       iterations of asyncio's loops
 *     task_asyncio.c    asyncio's tasks, from within: where they hold their coroutine; who asks for their cancellation
 *     task_coroutine.c  what stands for the coroutine of a task that is known
 *     task_step.c       a task is made ready, its step begins, ends
 *     task_switch.c     the same as the kernel's sched_switch and sched_waking
 *     task_known.c      the tasks that are known, their ids, their spawn; keyframes
 *     task_names.c      names of code, lines and types; where the program is; what a task waits for
 *
 * Each calls those below it alone. Nothing here is seen outside of the module.
 */
#ifndef AIOTRACE_TASK_H
#define AIOTRACE_TASK_H

#include "aiotrace.h"

#include <stddef.h>
#include <structmember.h>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* glibc keeps room for a little of a module that is loaded late: it is found without a call then. */
#ifdef __GLIBC__
#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL __thread
#endif

#pragma GCC visibility push(hidden)

/* --- time (task.c) -------------------------------------------------------------------------------------- */

#define ANCHOR_NS 100000000u     /* CLOCK_MONOTONIC is read again at least this often */
#define CALIBRATION_NS 20000000u /* it is read to some 50 ns, so the counter's rate is known to a few millionths */

typedef struct {
    int is_constant;     /* whether the processor's counter has a constant rate */
    uint64_t first_tick; /* of the calibration; `first_ns` belongs to it */
    uint64_t first_ns;
    uint64_t tick, ns;  /* the anchor */
    uint64_t multiplier; /* nanoseconds a tick, in 2**-32; 0: not known yet */
} Counter;

extern Counter counter;

/* CLOCK_MONOTONIC in nanoseconds, mostly by the processor's counter: three readings a step are what it costs most. May
 * go backwards by what the counter has strayed in ANCHOR_NS. */
static inline uint64_t
now_ns(void)
{
#if defined(__x86_64__)
    if (likely(counter.is_constant)) {
        uint64_t tick = __rdtsc();
        if (likely(counter.multiplier)) {
            uint64_t passed = (uint64_t)(((unsigned __int128)(tick - counter.tick) * counter.multiplier) >> 32);
            if (likely(passed < ANCHOR_NS))
                return counter.ns + passed;
        }
        uint64_t now = aiotrace_monotonic_ns();
        counter.tick = __rdtsc();
        counter.ns = now;
        if (now - counter.first_ns > CALIBRATION_NS && counter.multiplier == 0)
            counter.multiplier = (uint64_t)((double)(now - counter.first_ns) /
                                            (double)(counter.tick - counter.first_tick) * 4294967296.0);
        return now;
    }
#endif
    return aiotrace_monotonic_ns();
}

void start_clock(void);

/* --- what Python gave us (task.c) ------------------------------------------------------------------- */

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

/* --- doors (task_names.c) ------------------------------------------------------------------------------- */

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

extern Door door_waiter, door_must_cancel, door_exception, door_done, door_cancelled, door_cancelling, door_name, door_await,
            door_code, door_suspended, door_frame, door_trio_name;

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

/* --- names of code and types (task_names.c) ---------------------------------------------------------- */

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
PyObject *code_of(PyObject *coroutine);
int find_innermost(PyObject *coroutine, PyObject **innermost, PyObject **outer, int *is_handling);

/* --- records (task_names.c) ------------------------------------------------------------------------------ */

void call_event(PyObject *event, int count, PyObject **arguments);

#define EMIT(event, ...)                                                                      \
    do {                                                                                      \
        PyObject *arguments_[] = {__VA_ARGS__};                                               \
        call_event(events[event], (int)(sizeof arguments_ / sizeof *arguments_), arguments_); \
    } while (0)

#define IS_OFF(event) aiotrace_event_is_off(events[event])

/* --- the tasks that are known (task_known.c) --------------------------------------------------------------- */

enum { ON_ASYNCIO, ON_TRIO };

/* What a coroutine that stands for a task's does: pass on what it is sent; that, as aiotrace's own; trace. */
enum { PASSES, SILENT, TRACES };

#define COMM_SIZE 16 /* of the kernel's char comm[], its NUL included */

/* A task that is known: the object that stands for its coroutine, which the task holds. */
typedef struct Known {
    PyObject_HEAD
    PyObject *inner; /* the coroutine */
    PyObject *ref;   /* weak, to the task */
    struct Known *next, *previous; /* in the ring of all that are known; NULL: it is not, or no more */
    PyObject *name;      /* as it was at its spawn, until its first step; held */
    PyObject *coroutine; /* its text; borrowed of the names */
    PyObject *awaited_code; /* of the innermost coroutine at the end of its last step, and what it was called; borrowed */
    uint64_t awaited_key;
    uint64_t ready_ns;   /* when it was made ready; 0: it was not, or nobody knows */
    int32_t waker;       /* by whom */
    int32_t id, parent;
    int cancels;    /* requests to cancel it that were made */
    uint32_t round; /* of its last keyframe */
    char state;
    char runtime;
    char has_run;      /* it was sent something through us */
    char is_named;     /* its pid is */
    char is_cancelled; /* a cancellation was delivered, and it is not known yet what became of it */
    char is_swallowed; /* the last one was, and that was told */
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
void tell_end(int32_t id, const Name *result, const Name *exception);
void tell_alive(Known *known);
void begin_rounds(void);
void go_on_with_round(uint64_t now);
void write_whole_round(void);

/* --- switches (task_switch.c) ---------------------------------------------------------------------------------- */

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

/* --- steps (task_step.c) ------------------------------------------------------------------------------------- */

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

extern THREAD_LOCAL int is_preset; /* the task that runs was running when tracing began: its step has no end for us */

void made_ready(Known *known, PyObject *loop);
void begin_known(Step *step, Known *known);
void end_step(Step *step, const Outcome *outcome);
void tell_delivered(Step *step);
long count_cancels(PyObject *task);

/* --- coroutines (task_coroutine.c) --------------------------------------------------------------------------- */

extern PyTypeObject *coroutine_type;

Known *new_known(PyObject *inner, PyObject *ref);

/* --- asyncio's tasks (task_asyncio.c) ------------------------------------------------------------------------ */

void callback_scheduled(PyObject *callback, PyObject *loop);
int is_known_step(PyObject *callback);
Known *find_task(PyObject *task);
void unwrap_task(Known *known);
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
