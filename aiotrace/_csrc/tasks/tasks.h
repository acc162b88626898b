/* What the files of the task tracer share; start_stop.c says what it is and which invariants hold.
 *
 *     start_stop.c          start and stop
 *     asyncio_handle.c      asyncio: Handle
 *     uvloop.c              uvloop: call_soon
 *     trio.c                trio: Task._create
 *     asyncio_iterations.c  iterations of asyncio's loops
 *     asyncio_task.c        the insides of asyncio's tasks: where they keep their coroutine; who requests cancellations
 *     coroutine_proxy.c     the object that replaces the coroutine of a traced task
 *     step.c                a task becomes ready, its step begins, receives a value, ends
 *     cancel_outcome.c      what became of a cancellation
 *     sched_switch.c        the same as the kernel's sched_switch and sched_waking
 *     registry.c            the table of traced tasks, their ids, their spawn; keyframes
 *     names.c               names of code, lines and types; where the program is
 *     field_readers.c       reading attributes of tasks without a look-up
 *     frames.h, .c          frames of threads and coroutines, as the interpreter stores them
 *     state.c               the shared state
 *
 * Each calls only those below it. Nothing here is visible outside of the module.
 */
#ifndef AIOTRACE_TASK_H
#define AIOTRACE_TASK_H

#include "common/clock.h"
#include "events/event.h"
#include "ring/cursor.h"
#include "stalls/watch.h"

#include <stddef.h>
#include <structmember.h>

#pragma GCC visibility push(hidden)

/* --- what Python gave us (state.c) ------------------------------------------------------------------- */

enum { SPAWN, NAME, READY, STEP, DONE, CANCEL, DELIVERED, CAUGHT, SWALLOWED, ALIVE, EVENTS };
extern PyObject *aiotrace_task_events[EVENTS];

extern PyObject *aiotrace_describe;     /* (code or type, line) -> (text, key, flags) */
extern PyObject *aiotrace_name_command; /* (pid, name) */
extern PyObject *aiotrace_find_line;    /* (coroutine) -> text: where it is suspended */
extern PyObject *aiotrace_find_inner;   /* (coroutine) -> the coroutine that a library's coroutine wraps, or None */
extern PyObject *aiotrace_report;       /* (handle, exception): what events.Handle does of an exception */
extern PyObject *aiotrace_current_tasks; /* loop -> the task whose step runs, as asyncio has it */
extern PyTypeObject *aiotrace_task_type; /* _asyncio.Task */
extern PyObject *aiotrace_cancelled_error, *aiotrace_trio_cancelled;
extern PyTypeObject *aiotrace_trio_error; /* outcome.Error */

extern int aiotrace_traces_tasks;

/* --- field readers (field_readers.c) ------------------------------------------------------------------------------- */

/* A way to read something of an object that costs no look-up, if it is of the type that the way was
 * found on. */
typedef struct {
    const char *text;
    int is_call;
    PyObject *name;
    PyCFunction method;
    getter get;
    void *closure;
    Py_ssize_t offset; /* of an object in the object; 0: it is not so simple */
} FieldReader;

extern FieldReader aiotrace_reader_waiter, aiotrace_reader_must_cancel, aiotrace_reader_exception, aiotrace_reader_done,
    aiotrace_reader_cancelled, aiotrace_reader_cancelling, aiotrace_reader_name, aiotrace_reader_code,
            aiotrace_reader_suspended, aiotrace_reader_frame, aiotrace_reader_trio_name;

int aiotrace_prepare_reader(FieldReader *reader, PyTypeObject *type);
int aiotrace_field_is_true(const FieldReader *reader, PyObject *object, int is_known);

/* A new reference, or NULL without an exception. `is_known`: the object is of the type that the
 * reader was prepared for. */
static inline PyObject *
read_field(const FieldReader *reader, PyObject *object, int is_known)
{
    PyObject *value;
    if (is_known && reader->offset)
        return Py_XNewRef(*(PyObject **)((char *)object + reader->offset));
    if (likely(is_known && reader->get != NULL))
        value = reader->get(object, reader->closure);
    else if (likely(is_known && reader->method != NULL))
        value = reader->method(object, NULL);
    else if (reader->is_call)
        value = PyObject_CallMethodNoArgs(object, reader->name);
    else
        value = PyObject_GetAttr(object, reader->name);
    if (unlikely(value == NULL))
        PyErr_Clear();
    return value;
}

static inline int
is_c_task(PyObject *task)
{
    return aiotrace_task_type != NULL && PyObject_TypeCheck(task, aiotrace_task_type);
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

extern Name aiotrace_unknown_name; /* "?" */
extern Name aiotrace_name_yield, aiotrace_name_done, aiotrace_name_nothing, aiotrace_name_returned,
    aiotrace_name_raised, aiotrace_name_cancelled, aiotrace_name_lost;
extern size_t aiotrace_names_used;

Name aiotrace_find_name(PyObject *object, int place);
Name aiotrace_find_site(void);
Name aiotrace_name_coroutine(PyObject *coroutine);
int aiotrace_fill_name(Name *name, const char *text);
PyObject *aiotrace_text_of(const Name *name);
PyObject *aiotrace_name_of_task(PyObject *task, int runtime);

/* --- records (names.c) ------------------------------------------------------------------------------ */

void aiotrace_call_event(PyObject *event, int count, PyObject **arguments);

#define EMIT(event, ...)                                                                      \
    do {                                                                                      \
        PyObject *arguments_[] = {__VA_ARGS__};                                               \
        aiotrace_call_event(aiotrace_task_events[event], (int)(sizeof arguments_ / sizeof *arguments_), arguments_); \
    } while (0)

typedef struct {
    uint64_t off_in;   /* the epoch in which no recording was found to take the event */
    uint64_t plain_in; /* in which all were found to take it always */
    uint32_t id;
} Kind;

extern Kind aiotrace_task_kinds[EVENTS];

int aiotrace_recheck_off(int event);
int aiotrace_recheck_plain(int event);

static inline int
is_off(int event)
{
    return likely(aiotrace_task_kinds[event].off_in == aiotrace_epoch) || aiotrace_recheck_off(event);
}

/* What a record of an event of numbers begins with; a struct of its fields, in their order,
 * follows. */
#define RECORD_HEAD  \
    uint32_t header; \
    uint32_t kind;   \
    int32_t pid

/* Where a record of `size` bytes goes, its head written; NULL: not so simply (a full page, a
 * filter, several recordings), the event has to be called. The caller stores the rest there at
 * once, and then calls `commit`. */
static inline __attribute__((always_inline)) void *
begin_task_record(int event, uint64_t now, uint32_t size, Cursor **writer)
{
    Lease *lease = aiotrace_lease;
    uint64_t epoch = aiotrace_epoch;
    if (unlikely(aiotrace_task_kinds[event].plain_in != epoch) && !aiotrace_recheck_plain(event))
        return NULL;
    if (unlikely(lease == NULL || lease->epoch != epoch))
        return NULL;
    Cursor *cursor = lease->only;
    if (unlikely(cursor == NULL))
        return NULL;
    char *payload = begin_record(&cursor->at, now, size - 4);
    if (unlikely(payload == NULL))
        return NULL;
    struct { RECORD_HEAD; } *record = (void *)(payload - 4);
    record->kind = aiotrace_task_kinds[event].id;
    record->pid = lease->pid;
    *writer = cursor;
    return record;
}

static inline void
end_record(Cursor *writer, uint64_t now, uint32_t size)
{
    commit(&writer->at, now, writer->at.end + size);
}

/* --- traced tasks (registry.c) --------------------------------------------------------------- */

enum { ON_ASYNCIO, ON_TRIO };

/* What the Coroutine of a task does: pass everything on, as its task is not traced (any more); the
 * same, as the task is aiotrace's own; trace. */
enum { PASSES, SILENT, TRACES };

#define COMM_SIZE 16 /* of the kernel's char comm[], its NUL included */

/* A traced task: the object that replaces its coroutine, held by the task. */
typedef struct TracedTask {
    PyObject_HEAD
    /* For each step. */
    PyObject *inner; /* the coroutine */
    char state;
    char runtime;
    char has_run;      /* it was sent something through us */
    char is_named;     /* its pid is */
    char is_cancelled; /* a cancellation was delivered, and it is not known yet what became of it */
    char is_swallowed; /* the last one was, and that was told */
    uint32_t plain_in; /* its next step is plain in that round of `aiotrace_plain_round`; 0: in none */
    int32_t id;
    int32_t waker;     /* who made it ready */
    uint64_t ready_ns; /* when; 0: it was not, or it is not known */
    PyObject *name;    /* as it was at its spawn, until its first step; held */
    PyObject *awaited_code; /* of the innermost coroutine at the end of its last step; borrowed, as the next */
    PyObject *awaited_by;   /* of the one that awaits that, if it has to do with the name of both; or NULL */
    uint64_t awaited_key;   /* that name */
    const PyObject *task;   /* only to be compared */
    /* Seldom. */
    PyObject *ref; /* weak, to the task */
    struct TracedTask *next, *previous; /* in the ring of all traced tasks; NULL: not in the ring */
    PyObject *coroutine; /* its text; borrowed of the names */
    int32_t parent;
    int cancels;    /* requests to cancel it that were made */
    uint32_t keyframe; /* of its last keyframe */
    char comm[COMM_SIZE]; /* its name, for switches; empty: not asked for yet */
} TracedTask;

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

extern THREAD_LOCAL Making *aiotrace_making;
extern Py_ssize_t aiotrace_traced_count;
extern int32_t aiotrace_first_id;  /* of this process */
extern int aiotrace_commands_left; /* pids that may be named until the next keyframe */
extern uint64_t aiotrace_keyframe_due; /* when a step has to continue the keyframe */

TracedTask *aiotrace_register_task(PyObject *task, PyObject *coroutine, int runtime, int is_new);
void aiotrace_emit_spawn(TracedTask *traced, PyObject *task);
void aiotrace_forget_task(TracedTask *traced);
TracedTask *aiotrace_first_traced_task(void);
TracedTask *aiotrace_next_traced_task(const TracedTask *traced);
int32_t aiotrace_new_id(void);
int32_t aiotrace_base_id(void);
void aiotrace_begin_ids(uint32_t next);
void aiotrace_emit_name(TracedTask *traced);
void aiotrace_forget_pid_names(void);
void aiotrace_name_pids(int most);
void aiotrace_emit_end(int32_t id, const Name *result, const Name *exception, uint64_t now);
void aiotrace_emit_alive(TracedTask *traced);
void aiotrace_begin_keyframes(void);
void aiotrace_continue_keyframe(uint64_t now);
void aiotrace_write_keyframe(void);

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

extern int aiotrace_emits_sched_events;

/* This thread turns from what runs under `previous` (0: itself) to a task of this pid, which is set
 * then. `comm`: COMM_SIZE bytes. */
void aiotrace_switch_in(Switch *made, int32_t previous, int32_t pid, const char *comm, uint64_t now);

/* And back. The pid is still the task's. */
void aiotrace_switch_out(Switch *made, int32_t pid, const char *comm, int state, uint64_t now);

/* --- steps (step.c) ------------------------------------------------------------------------------------- */

typedef struct {
    TracedTask *traced; /* held */
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

int aiotrace_state_after(const Outcome *outcome);
const char *aiotrace_comm_of(TracedTask *traced);
void aiotrace_emit_waking(TracedTask *traced);

/* A step, or a callback that is no task's (0), begins for the watch over stalls. Returns whether
 * `end_watched` is due.
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

extern uint32_t aiotrace_plain_round; /* increased when steps that were plain may not be any more */
extern uint64_t aiotrace_steps_hooked[2]; /* that did not go the short way, so far, by runtime */
/* the task that runs was running when tracing began: its step has no end for us */
extern THREAD_LOCAL int aiotrace_is_preset;

/* Find out whether the next step of a task will be plain. */
static inline void
predict_next_step(TracedTask *traced)
{
    if (traced->state == TRACES && !traced->is_cancelled && traced->name == NULL &&
        (traced->is_named || aiotrace_commands_left <= 0) &&
        !aiotrace_emits_sched_events && PyCoro_CheckExact(traced->inner))
        traced->plain_in = aiotrace_plain_round;
}

void aiotrace_emit_ready(TracedTask *traced, PyObject *loop);
PySendResult aiotrace_send_step(PyObject *self, PyObject *sent, PyObject **result);
void aiotrace_begin_step(Step *step, TracedTask *traced);
void aiotrace_end_step(Step *step, const Outcome *outcome);
void aiotrace_end_sent(Step *step, PyObject *yielded);

/* A step of a task is scheduled in a loop, by what runs here. */
static inline void
made_ready(TracedTask *traced, PyObject *loop)
{
    if (traced->ready_ns == 0 || unlikely(!is_off(READY))) /* else its own step has noted it at its end */
        aiotrace_emit_ready(traced, loop);
}

/* --- cancellation (cancel_outcome.c) --------------------------------------------------------------------------- */

/* Whether an exception, or one that was being handled when it was raised, is a cancellation. */
int aiotrace_is_cancelled_error(PyObject *error);

/* The requests to cancel a task that were not taken back. */
long aiotrace_count_cancels(PyObject *task);

void aiotrace_emit_delivered(Step *step);
void aiotrace_emit_cancel_outcome(Step *step, const Outcome *outcome);
void aiotrace_emit_trio_outcome(Step *step, const Outcome *outcome);

/* --- coroutines (coroutine_proxy.c) --------------------------------------------------------------------------- */

extern PyTypeObject *aiotrace_coroutine_type;

TracedTask *aiotrace_new_traced_task(PyObject *inner, PyObject *ref);

/* --- asyncio's tasks (asyncio_task.c) ------------------------------------------------------------------------ */

extern Py_ssize_t aiotrace_coroutine_offset; /* in a task of aiotrace_task_type */
extern Py_ssize_t aiotrace_step_offset;      /* of the task in a aiotrace_step_type */
extern PyTypeObject *aiotrace_step_type;     /* TaskStepMethWrapper */

static inline PyObject **
coroutine_place(PyObject *task)
{
    return (PyObject **)((char *)task + aiotrace_coroutine_offset);
}

/* The task that a callback is a step of, if it is one of aiotrace_task_type itself and known; else
 * NULL: look closer. */
static inline TracedTask *
traced_by_step(PyObject *callback)
{
    if (unlikely(Py_TYPE(callback) != aiotrace_step_type))
        return NULL;
    PyObject *task = *(PyObject **)((char *)callback + aiotrace_step_offset);
    if (unlikely(Py_TYPE(task) != aiotrace_task_type))
        return NULL;
    TracedTask *traced = (TracedTask *)*coroutine_place(task);
    return likely(traced != NULL && Py_TYPE(traced) == aiotrace_coroutine_type &&
                  traced->state != PASSES) ? traced : NULL;
}

/* Whether a callback that is scheduled is a step that everything is known of already: it is ready
 * since its last ended. */
static inline int
is_already_ready(PyObject *callback)
{
    TracedTask *traced = traced_by_step(callback);
    return traced != NULL && traced->ready_ns != 0 && aiotrace_task_kinds[READY].off_in == aiotrace_epoch;
}

void aiotrace_callback_scheduled(PyObject *callback, PyObject *loop);
int aiotrace_is_traced_step(PyObject *callback);
TracedTask *aiotrace_find_task(PyObject *task);
void aiotrace_unwrap_task(TracedTask *traced);
extern PyObject *aiotrace_cancel_watch;
void aiotrace_call_cancel_watch(const TracedTask *traced, PyObject *task, PyObject *scope);
int aiotrace_install_asyncio(PyObject *parts);
void aiotrace_uninstall_asyncio(void);

/* --- the hooks: each adds its functions to the module ------------------------------------------------------------- */

#define FREE_HANDLES 64 /* callbacks whose memory is kept */

int aiotrace_asyncio_handle_exec(PyObject *module);
int aiotrace_uvloop_exec(PyObject *module);
int aiotrace_trio_exec(PyObject *module);
int aiotrace_asyncio_iterations_exec(PyObject *module);
int aiotrace_coroutine_proxy_exec(PyObject *module);
int aiotrace_sched_switch_exec(PyObject *module);
int aiotrace_asyncio_task_exec(PyObject *module);

#pragma GCC visibility pop

#endif
