/* Tracing of tasks: what runs for each step. The hooks are put in place by _tracers/task.py and the modules beside it.
 *
 *   asyncio   Handle      a subclass of events.Handle, in its place       made: ready      _run: begin ... end
 *   uvloop    Step        stands for the callback of Loop.call_soon       made: ready      called: begin ... end
 *   trio      Coroutine   stands for task.coro                                             sent: begin ... end
 *
 * What a step leaves is one record, written at its end: when and by whom it was made ready, how long it ran, what it
 * waits for now. While it runs, the records of its thread carry the task's id as their pid.
 *
 * Laws:
 * - Nothing of ours raises into the program, and a pending exception of the program's is kept.
 * - A task is known by its address and a weak reference, so that knowing it keeps nothing alive.
 * - Any call into Python may switch threads and change the tables: they are changed in one stretch without such calls,
 *   and what is used across a call is held.
 * - Pointers into CPython's own tasks are taken from the descriptors that Python code uses, never from guessed offsets.
 */

#include "aiotrace.h"

#include <stddef.h>
#include <structmember.h>

#if defined(__x86_64__)
#include <cpuid.h>
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

#define IDS (1 << 22)              /* ids of a process: from `first_id` on, used again after the last */
#define NAMES_MAX 65536            /* code objects, lines and types whose text is kept */
#define ROUND_NS 1000000000u       /* a keyframe of all live tasks at most this often */
#define SLICE 64                   /* tasks of a keyframe that one step writes */
#define COMMANDS_A_ROUND 512       /* pids that are named between two keyframes: 1 to 2 us each */
#define DEPTH_MAX 64               /* coroutines that await each other, looked into */

/* --- time --------------------------------------------------------------------------------------------- */

#define ANCHOR_NS 100000000u     /* CLOCK_MONOTONIC is read again at least this often */
#define CALIBRATION_NS 20000000u /* it is read to some 50 ns, so the counter's rate is known to a few millionths */

static struct {
    int is_constant;     /* whether the processor's counter has a constant rate */
    uint64_t first_tick; /* of the calibration; `first_ns` belongs to it */
    uint64_t first_ns;
    uint64_t tick, ns;  /* the anchor */
    uint64_t multiplier; /* nanoseconds a tick, in 2**-32; 0: not known yet */
} counter;

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

static void
start_clock(void)
{
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (counter.is_constant || !__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & 1u << 8))
        return;
    counter.first_ns = aiotrace_monotonic_ns();
    counter.first_tick = __rdtsc();
    counter.is_constant = 1;
#endif
}

/* --- what Python gave us -------------------------------------------------------------------------- */

enum { SPAWN, NAME, READY, STEP, DONE, CANCEL, DELIVERED, CAUGHT, SWALLOWED, ALIVE, EVENTS };
static const char *const event_names[EVENTS] = {"spawn",  "name",      "ready",  "step",      "done",
                                                "cancel", "delivered", "caught", "swallowed", "alive"};
static PyObject *events[EVENTS];

static PyObject *describe;     /* (code or type, line) -> (text, key, flags) */
static PyObject *name_command; /* (pid, name) */
static PyObject *find_line;    /* (task) -> text: where it is suspended */
static PyObject *find_inner;   /* (coroutine) -> the coroutine that one of a library's stands for, or None */
static PyObject *report;       /* (handle, exception): what events.Handle does of an exception */
static PyTypeObject *step_type; /* TaskStepMethWrapper */
static PyCFunction wakeup;      /* what C tasks give to futures */
static PyObject *python_step, *python_wakeup; /* the functions of _PyTask */
static PyTypeObject *task_type; /* _asyncio.Task */
static PyObject *cancelled_error, *trio_cancelled;
static PyTypeObject *trio_error; /* outcome.Error */

static int is_active;

enum { IS_LIBRARY = 1, IS_TRAP = 2, IS_OURS = 4 };

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

static Door door_waiter = {.text = "_fut_waiter"}, door_must_cancel = {.text = "_must_cancel"},
            door_coro = {.text = "_coro"}, door_exception = {.text = "_exception"},
            door_done = {.text = "done", .is_call = 1}, door_cancelled = {.text = "cancelled", .is_call = 1},
            door_cancelling = {.text = "cancelling", .is_call = 1}, door_name = {.text = "get_name", .is_call = 1},
            door_await = {.text = "cr_await"}, door_code = {.text = "cr_code"}, door_self = {.text = "__self__"},
            door_trio_name = {.text = "name"};

static int
open_door(Door *door, PyTypeObject *type)
{
    if (door->name == NULL && (door->name = PyUnicode_InternFromString(door->text)) == NULL)
        return -1;
    door->method = NULL;
    door->get = NULL;
    door->offset = 0;
    if (type == NULL)
        return 0;
    PyObject *found = PyObject_GetAttr((PyObject *)type, door->name);
    if (found == NULL) {
        PyErr_Clear();
        return 0;
    }
    if (Py_TYPE(found) == &PyGetSetDescr_Type) {
        door->get = ((PyGetSetDescrObject *)found)->d_getset->get;
        door->closure = ((PyGetSetDescrObject *)found)->d_getset->closure;
    }
    else if (Py_TYPE(found) == &PyMethodDescr_Type &&
             ((PyMethodDescrObject *)found)->d_method->ml_flags == METH_NOARGS) {
        door->method = ((PyMethodDescrObject *)found)->d_method->ml_meth;
    }
    else if (Py_TYPE(found) == &PyMemberDescr_Type && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT) {
        door->offset = ((PyMemberDescrObject *)found)->d_member->offset;
    }
    Py_DECREF(found);
    return 0;
}

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

static int
door_is_true(const Door *door, PyObject *object, int is_known)
{
    PyObject *value = read_door(door, object, is_known);
    int is_true = value == Py_True;
    Py_XDECREF(value);
    return is_true;
}

/* --- names of code and types ------------------------------------------------------------------------ */

typedef struct {
    PyObject *object; /* held: a code object or a type */
    int line;         /* 0: the whole of it */
    int flags;
    uint64_t key;
    PyObject *text;
} Name;

static Name *names;
static size_t names_size, names_used;
static Name unknown_name; /* "?" */

static inline size_t
hash_pointer(const void *pointer, int line)
{
    uint64_t hash = ((uint64_t)(uintptr_t)pointer >> 4) ^ ((uint64_t)(uint32_t)line << 32);
    hash *= 0x9E3779B97F4A7C15u;
    return (size_t)(hash >> 20);
}

static inline Name *
probe_name(PyObject *object, int line)
{
    size_t mask = names_size - 1;
    for (size_t i = hash_pointer(object, line) & mask;; i = (i + 1) & mask)
        if (names[i].object == NULL || (names[i].object == object && names[i].line == line))
            return &names[i];
}

static int
grow_names(void)
{
    size_t size = names_size ? names_size * 2 : 1024;
    Name *old = names, *grown = PyMem_RawCalloc(size, sizeof(Name));
    if (grown == NULL)
        return -1;
    size_t old_size = names_size;
    names = grown;
    names_size = size;
    for (size_t i = 0; i < old_size; i++)
        if (old[i].object != NULL)
            *probe_name(old[i].object, old[i].line) = old[i];
    PyMem_RawFree(old);
    return 0;
}

/* The text of a code object (of a line of it) or a type. May call Python, once for each. */
static Name
find_name(PyObject *object, int line)
{
    if (likely(names_size)) {
        Name *found = probe_name(object, line);
        if (likely(found->object != NULL))
            return *found;
    }
    if (names_used >= NAMES_MAX)
        return unknown_name;
    PyObject *answer = PyObject_CallFunction(describe, "Oi", object, line);
    Name made = {object, line, 0, 0, NULL};
    unsigned long long key;
    if (answer == NULL || !PyArg_ParseTuple(answer, "OKi", &made.text, &key, &made.flags)) {
        PyErr_WriteUnraisable(describe);
        Py_XDECREF(answer);
        return unknown_name;
    }
    made.key = key;
    Py_INCREF(made.text);
    Py_DECREF(answer);
    /* From here on no Python. */
    if (names_used * 2 >= names_size && grow_names() < 0) {
        Name lost = unknown_name;
        lost.flags = made.flags;
        return lost;
    }
    Name *place = probe_name(object, line);
    if (place->object != NULL) { /* another thread was here meanwhile */
        Py_DECREF(made.text);
        return *place;
    }
    Py_INCREF(object);
    names_used++;
    return *place = made;
}

/* --- the tasks that are known ------------------------------------------------------------------------- */

enum { ON_ASYNCIO, ON_TRIO };

typedef struct Known {
    PyObject *task; /* borrowed; alive as long as `ref` says so */
    PyObject *ref;
    PyObject *name;      /* as it was at its spawn, until its first step; held */
    PyObject *coroutine; /* its text; borrowed of `names` */
    int holders;
    int32_t id, parent;
    long cancels;  /* requests to cancel it that were told */
    uint32_t runs; /* in which run of the tracer it was known */
    char runtime;
    char is_silent; /* one of aiotrace's own: it is not traced */
    char is_named;
    char is_cancelled; /* a cancellation was delivered, and it is not known yet what became of it */
    char is_swallowed; /* the last one was, and that was told */
    uint32_t round;    /* of its last keyframe */
    struct Known *free;
} Known;

static Known **tasks;
static size_t tasks_size, tasks_used;
static Known *free_known;

static uint32_t runs; /* how often the tracer was started */
static int32_t first_id;
static uint32_t next_id, unchecked_ids; /* ids from `next_id` on that are known to be nobody's */

static uint64_t round_began;
static uint32_t round_number;
static size_t round_place; /* where the keyframe has come to; tasks_size: it is done */
static int commands_left;

static int32_t
base_id(void)
{
    return (int32_t)((1 + (long)getpid() % 511) << 22);
}

static inline PyObject *
referent(PyObject *ref)
{
    PyObject *object = ((PyWeakReference *)ref)->wr_object;
    return object == Py_None ? NULL : object;
}

static int32_t
new_id(void)
{
    while (unlikely(unchecked_ids == 0)) { /* as far as the next id of a task that lives */
        uint32_t next = next_id % IDS, gap = IDS - next;
        for (size_t i = 0; i < tasks_size; i++) {
            if (tasks[i] != NULL) {
                uint32_t other = (uint32_t)(tasks[i]->id - first_id);
                if (other >= next && other - next < gap)
                    gap = other - next;
            }
        }
        next_id = gap ? next : next + 1;
        unchecked_ids = gap;
    }
    unchecked_ids--;
    return first_id + (int32_t)next_id++;
}

static inline size_t
probe_task(const PyObject *task)
{
    size_t mask = tasks_size - 1, i = hash_pointer(task, 0) & mask;
    while (tasks[i] != NULL && tasks[i]->task != task)
        i = (i + 1) & mask;
    return i;
}

static void
release(Known *known)
{
    if (--known->holders > 0)
        return;
    PyObject *ref = known->ref, *name = known->name;
    known->free = free_known;
    free_known = known;
    Py_XDECREF(ref);
    Py_XDECREF(name);
}

/* Take a task out of the table; linear probing wants the ones behind it moved up. */
static void
remove_at(size_t i)
{
    size_t mask = tasks_size - 1;
    Known *known = tasks[i];
    for (size_t j = i;;) {
        tasks[i] = NULL;
        for (;;) {
            j = (j + 1) & mask;
            if (tasks[j] == NULL)
                goto done;
            size_t home = hash_pointer(tasks[j]->task, 0) & mask;
            if (((j - home) & mask) >= ((j - i) & mask))
                break;
        }
        tasks[i] = tasks[j];
        i = j;
    }
done:
    tasks_used--;
    release(known);
}

static int
grow_tasks(void)
{
    size_t size = tasks_size ? tasks_size * 2 : 256, old_size = tasks_size;
    Known **old = tasks, **grown = PyMem_RawCalloc(size, sizeof(Known *));
    if (grown == NULL)
        return -1;
    tasks = grown;
    tasks_size = size;
    for (size_t i = 0; i < old_size; i++)
        if (old[i] != NULL)
            tasks[probe_task(old[i]->task)] = old[i];
    PyMem_RawFree(old);
    round_place = tasks_size; /* the next keyframe begins anew */
    return 0;
}

/* --- records --------------------------------------------------------------------------------------- */

/* Call an event; steals the references to its arguments, any of which may be NULL after an error. */
static void
call_event(PyObject *event, int count, PyObject **arguments)
{
    int complete = 1;
    for (int i = 0; i < count; i++)
        complete &= arguments[i] != NULL;
    PyObject *result = complete ? PyObject_Vectorcall(event, arguments, (size_t)count, NULL) : NULL;
    if (result == NULL)
        PyErr_WriteUnraisable(event);
    Py_XDECREF(result);
    for (int i = 0; i < count; i++)
        Py_XDECREF(arguments[i]);
}

#define EMIT(event, ...)                                                                     \
    do {                                                                                     \
        PyObject *arguments_[] = {__VA_ARGS__};                                              \
        call_event(events[event], (int)(sizeof arguments_ / sizeof *arguments_), arguments_);              \
    } while (0)

#define IS_OFF(event) aiotrace_event_is_off(events[event])

static PyObject *
text_of(const Name *name)
{
    PyObject *text = name->text != NULL ? name->text : unknown_name.text;
    return Py_NewRef(text);
}

static PyObject *
name_of(PyObject *task, int runtime)
{
    PyObject *name = runtime == ON_TRIO ? read_door(&door_trio_name, task, 0) : read_door(&door_name, task, is_fast(task));
    if (name != NULL && !PyUnicode_CheckExact(name)) {
        PyObject *text = PyObject_Str(name);
        Py_SETREF(name, text);
        if (name == NULL)
            PyErr_Clear();
    }
    return name != NULL ? name : PyUnicode_FromString("");
}

/* Where the program is now: the innermost line that is not a runtime's own, or the innermost of all. */
static Name
find_site(void)
{
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    Name innermost = unknown_name;
    int is_first = 1;
    while (frame != NULL) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        Name name = find_name((PyObject *)code, 0);
        int is_found = !(name.flags & IS_LIBRARY);
        if (is_found || is_first) {
            Name line = find_name((PyObject *)code, PyCode_Addr2Line(code, PyFrame_GetLasti(frame)));
            if (is_first || is_found)
                innermost = line;
            is_first = 0;
        }
        Py_DECREF(code);
        PyFrameObject *back = is_found ? NULL : PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    return innermost;
}

static PyObject *
coroutine_of(PyObject *task, int runtime)
{
    static PyObject *coro;
    if (runtime == ON_ASYNCIO)
        return read_door(&door_coro, task, is_fast(task));
    if (coro == NULL && (coro = PyUnicode_InternFromString("coro")) == NULL) {
        PyErr_Clear();
        return NULL;
    }
    PyObject *found = PyObject_GetAttr(task, coro);
    if (found == NULL)
        PyErr_Clear();
    return found;
}

/* The text of the code that a coroutine runs, or of its type. */
static Name
name_coroutine(PyObject *coroutine)
{
    if (coroutine == NULL)
        return unknown_name;
    PyObject *code = read_door(&door_code, coroutine, PyCoro_CheckExact(coroutine));
    Name name;
    if (code != NULL && PyCode_Check(code))
        name = find_name(code, 0);
    else
        name = find_name((PyObject *)Py_TYPE(coroutine), 0);
    Py_XDECREF(code);
    return name;
}

/* --- eager first steps --------------------------------------------------------------------------------- */

/* A task that a factory is making: if it runs at once, it does so before anybody can know it. */
typedef struct Making {
    PyObject *coroutine;
    int32_t id, parent;
    PyObject *task; /* what the factory returned, when it has; borrowed */
    struct Making *outer;
} Making;

static THREAD_LOCAL Making *making;

/* --- knowing a task ------------------------------------------------------------------------------------ */

static Known *
find_task(PyObject *task)
{
    if (unlikely(!tasks_size))
        return NULL;
    Known *known = tasks[probe_task(task)];
    return known != NULL && referent(known->ref) == task ? known : NULL;
}

/* Say what a task is called, once it runs: some give a task its name just after they made it. */
static void
tell_name(Known *known, PyObject *task)
{
    PyObject *old = known->name, *name;
    known->name = NULL;
    if ((old != NULL || (commands_left > 0 && !known->is_named)) && (name = name_of(task, known->runtime)) != NULL) {
        if (commands_left > 0 && !known->is_named) {
            commands_left--;
            known->is_named = 1;
            PyObject *result = PyObject_CallFunction(name_command, "iO", known->id, name);
            if (result == NULL)
                PyErr_WriteUnraisable(name_command);
            Py_XDECREF(result);
        }
        if (old != NULL && PyUnicode_Compare(name, old) != 0)
            EMIT(NAME, PyLong_FromLong(known->id), Py_NewRef(name));
        Py_DECREF(name);
    }
    PyErr_Clear();
    Py_XDECREF(old);
}

static Name name_yield, name_done, name_nothing, name_returned, name_raised, name_cancelled, name_lost;

/* What task:done holds; the order and the padding of _tracers/task.py's definition. */
typedef struct {
    int32_t task, padding;
    uint64_t result, exception;
} DoneRecord;

static void
tell_end(int32_t id, const Name *result, const Name *exception)
{
    DoneRecord record = {id, 0, result->key, exception->key};
    if (!IS_OFF(DONE) && !aiotrace_event_numbers(events[DONE], now_ns(), &record))
        EMIT(DONE, PyLong_FromLong(id), text_of(result), text_of(exception));
}

static void
tell_lost(int32_t id)
{
    tell_end(id, &name_lost, &name_nothing);
}

/* Come to know a task; a new reference to what is known of it, or NULL.
 *
 *     is_new      it is being made just now, by what runs in this thread: its spawn is recorded */
static Known *
know_task(PyObject *task, int runtime, int is_new)
{
    int32_t parent = is_new ? aiotrace_get_task() : 0, id = 0, lost = 0;
    PyObject *coroutine = coroutine_of(task, runtime);
    for (Making *each = making; each != NULL; each = each->outer) {
        if (each->coroutine == coroutine || each->task == task) {
            id = each->id;
            parent = each->parent;
            Py_XSETREF(coroutine, Py_NewRef(each->coroutine)); /* a task that is done has none any more */
        }
    }
    Name name = name_coroutine(coroutine);
    if (name.flags & IS_LIBRARY && !(name.flags & IS_OURS) && !(IS_OFF(SPAWN) && IS_OFF(ALIVE))) {
        PyObject *inner = PyObject_CallOneArg(find_inner, coroutine);
        if (inner == NULL)
            PyErr_WriteUnraisable(find_inner);
        else if (inner != Py_None)
            name = name_coroutine(inner);
        Py_XDECREF(inner);
    }
    Py_XDECREF(coroutine);
    PyObject *ref = PyWeakref_NewRef(task, NULL);
    if (ref == NULL) {
        PyErr_Clear();
        return NULL;
    }
    /* From here on no Python. */
    if (tasks_used * 2 >= tasks_size && grow_tasks() < 0) {
        Py_DECREF(ref);
        return NULL;
    }
    size_t place = probe_task(task);
    Known *known = tasks[place];
    if (known != NULL && referent(known->ref) == task) {
        known->holders++;
        Py_DECREF(ref);
        return known;
    }
    if (known != NULL) { /* at the address of one that was destroyed while it was pending */
        lost = known->is_silent ? 0 : known->id;
        remove_at(place);
        place = probe_task(task);
    }
    if ((known = free_known) != NULL)
        free_known = known->free;
    else if ((known = PyMem_RawMalloc(sizeof *known)) == NULL) {
        Py_DECREF(ref);
        return NULL;
    }
    memset(known, 0, sizeof *known);
    known->task = task;
    known->ref = ref;
    known->coroutine = name.text;
    known->holders = 2;
    known->id = id ? id : new_id();
    known->parent = parent;
    known->runs = runs;
    known->runtime = (char)runtime;
    known->is_silent = (name.flags & IS_OURS) != 0;
    known->round = round_number;
    tasks[place] = known;
    tasks_used++;
    if (lost)
        tell_lost(lost);
    if (known->is_silent)
        return known;
    if (is_new && !IS_OFF(SPAWN)) {
        int32_t current = aiotrace_get_task();
        Name site = find_site();
        known->name = name_of(task, runtime);
        aiotrace_set_task(parent);
        EMIT(SPAWN, PyLong_FromLong(known->id), PyLong_FromLong(parent), Py_XNewRef(known->name), text_of(&name),
             text_of(&site));
        aiotrace_set_task(current);
    }
    return known;
}

static void
forget_task(PyObject *task, Known *known)
{
    if (tasks_size) {
        size_t place = probe_task(task);
        if (tasks[place] == known && known != NULL)
            remove_at(place);
    }
}

/* --- keyframes --------------------------------------------------------------------------------------- */

/* Go on with the round over all tasks: say which are alive, and which are gone that were never done. */
static void
write_round(int most)
{
    for (int written = 0; written < most && round_place < tasks_size;) {
        Known *known = tasks[round_place];
        if (known == NULL) {
            round_place++;
            continue;
        }
        PyObject *task = referent(known->ref);
        if (task == NULL) {
            int32_t lost = known->is_silent ? 0 : known->id;
            remove_at(round_place); /* another may have moved here */
            written++;
            if (lost)
                tell_lost(lost);
            continue;
        }
        round_place++;
        if (known->is_silent || known->round == round_number)
            continue;
        known->round = round_number;
        known->holders++;
        written++;
        if ((task = referent(known->ref)) != NULL && !IS_OFF(ALIVE)) {
            Py_INCREF(task);
            EMIT(ALIVE, PyLong_FromLong(known->id), PyLong_FromLong(known->parent), name_of(task, known->runtime),
                 Py_NewRef(known->coroutine != NULL ? known->coroutine : unknown_name.text));
            Py_DECREF(task);
        }
        release(known);
    }
}

static void
begin_round(uint64_t now)
{
    round_began = now;
    round_number++;
    round_place = 0;
    commands_left = COMMANDS_A_ROUND;
}

static void
go_on_with_round(uint64_t now)
{
    if (round_place >= tasks_size) {
        if (now - round_began < ROUND_NS)
            return;
        begin_round(now);
    }
    write_round(SLICE);
}

/* --- cancellation -------------------------------------------------------------------------------------- */

static PyObject *zero; /* the int */

static long
count_cancels(PyObject *task)
{
    PyObject *value = read_door(&door_cancelling, task, is_fast(task));
    if (value == NULL)
        return 0;
    long count = PyLong_Check(value) ? PyLong_AsLong(value) : 0;
    Py_DECREF(value);
    if (count == -1)
        PyErr_Clear();
    return count;
}

/* The message of the request: it is with what the task waits for, and with the task if it waits for nothing. */
static PyObject *
cancel_message(PyObject *task, PyObject *waiter)
{
    PyObject *message = PyObject_GetAttrString(waiter != NULL ? waiter : task, "_cancel_message");
    if (message == NULL || message == Py_None) {
        PyErr_Clear();
        Py_XDECREF(message);
        return PyUnicode_FromString("");
    }
    PyObject *text = PyObject_Str(message);
    Py_DECREF(message);
    if (text == NULL) {
        PyErr_Clear();
        text = PyUnicode_FromString("?");
    }
    return text;
}

/* Tell of requests to cancel a task that were not told yet.
 *
 *     waiter    what the task waits for, or NULL
 *     is_here   what runs now in this thread asks; otherwise nobody knows who did */
static void
tell_more_cancels(Known *known, PyObject *task, PyObject *waiter, int is_here)
{
    long count = count_cancels(task), before = known->cancels;
    known->cancels = count;
    if (likely(count <= before) || IS_OFF(CANCEL))
        return;
    Name site = is_here ? find_site() : unknown_name;
    EMIT(CANCEL, PyLong_FromLong(known->id), PyLong_FromLong(is_here ? aiotrace_get_task() : 0), text_of(&site),
         cancel_message(task, waiter));
}

/* The same, at the price of a call for the many that nobody ever cancelled. */
static inline void
tell_cancels(Known *known, PyObject *task, PyObject *waiter, int is_here)
{
    if (likely(known->cancels == 0 && door_cancelling.method != NULL && is_fast(task))) {
        PyObject *count = door_cancelling.method(task, NULL);
        if (likely(count == zero)) {
            Py_DECREF(count);
            return;
        }
        if (count == NULL)
            PyErr_Clear();
        Py_XDECREF(count);
    }
    tell_more_cancels(known, task, waiter, is_here);
}

static int
is_cancelled_error(PyObject *error)
{
    PyObject *kinds[] = {cancelled_error, trio_cancelled};
    for (int depth = 0; error != NULL && error != Py_None && depth < 8; depth++) {
        for (int i = 0; i < 2; i++)
            if (kinds[i] != NULL && PyObject_TypeCheck(error, (PyTypeObject *)kinds[i]))
                return 1;
        if (!PyExceptionInstance_Check(error))
            return 0;
        error = ((PyBaseExceptionObject *)error)->context;
    }
    return 0;
}

/* --- what a task waits for ------------------------------------------------------------------------------- */

/* The innermost coroutine of a suspended one that is not a runtime's trap.
 *
 *     depth        how deep it lies: 0 is the task's own
 *     is_handling  whether any of them is handling a cancellation just now
 *
 * Returns a new reference, or NULL. */
static PyObject *
find_innermost(PyObject *coroutine, int *depth, Name *name, int *is_handling)
{
    PyObject *found = NULL, *each = Py_XNewRef(coroutine);
    *depth = 0;
    *is_handling = 0;
    for (int i = 0; each != NULL && PyCoro_CheckExact(each) && i < DEPTH_MAX; i++) {
        PyObject *handled = ((PyCoroObject *)each)->cr_exc_state.exc_value;
        if (unlikely(handled != NULL && handled != Py_None))
            *is_handling |= is_cancelled_error(handled);
        PyObject *next = read_door(&door_await, each, 1);
        int goes_on = next != NULL && PyCoro_CheckExact(next);
        Name here = goes_on ? unknown_name : name_coroutine(each);
        if (goes_on || !(here.flags & IS_TRAP)) {
            Py_XSETREF(found, Py_NewRef(each));
            *depth = i;
            *name = here;
        }
        else if (found != NULL) {
            *name = name_coroutine(found);
        }
        Py_SETREF(each, next);
    }
    Py_XDECREF(each);
    return found;
}

/* --- steps ------------------------------------------------------------------------------------------------- */

typedef struct {
    Known *known; /* held; NULL: it is no task's, or nothing was traced when it was scheduled */
    uint64_t ns;  /* when it was made ready; 0: not known */
    int32_t waker;
} Ready;

typedef struct {
    Known *known; /* held; NULL: nothing is traced */
    PyObject *task;
    uint64_t began;
    Ready ready;
    int32_t previous;
    char is_delivered;
} Step;

static THREAD_LOCAL int is_preset; /* the task that runs was running when tracing began: its step has no end for us */

/* What task:step holds; the order and the padding of _tracers/task.py's definition. */
typedef struct {
    uint64_t ready_ns, duration_ns, awaited;
    int32_t waker;
} __attribute__((packed)) StepRecord;

/* The task that a callback is a step or a wake-up of, borrowed; NULL if it is none. */
static inline PyObject *
task_of(PyObject *callback)
{
    PyTypeObject *type = Py_TYPE(callback);
    if (type == step_type) {
        PyObject *task = door_self.get(callback, door_self.closure);
        if (task == NULL) {
            PyErr_Clear();
            return NULL;
        }
        Py_DECREF(task); /* the callback holds it */
        return task == Py_None ? NULL : task;
    }
    if (type == &PyCFunction_Type)
        return wakeup != NULL && PyCFunction_GET_FUNCTION(callback) == wakeup ? PyCFunction_GET_SELF(callback) : NULL;
    if (type == &PyMethod_Type) {
        PyObject *function = PyMethod_GET_FUNCTION(callback);
        if (function == python_step || function == python_wakeup)
            return PyMethod_GET_SELF(callback);
    }
    return NULL;
}

static inline int
is_step(PyObject *callback)
{
    return Py_TYPE(callback) == step_type ||
           (Py_TYPE(callback) == &PyMethod_Type && PyMethod_GET_FUNCTION(callback) == python_step);
}

/* A callback was scheduled: note when and by whom, if it is a task's. */
static void
made_ready(PyObject *callback, PyObject *argument, Ready *ready)
{
    PyObject *task = task_of(callback);
    if (task == NULL)
        return;
    ready->waker = aiotrace_get_task();
    Known *known = find_task(task);
    if (likely(known != NULL))
        known->holders++;
    else if ((known = know_task(task, ON_ASYNCIO, is_step(callback))) == NULL)
        return;
    ready->known = known;
    if (likely(!known->is_silent)) {
        tell_cancels(known, task, argument, 1);
        ready->ns = now_ns();
        if (!IS_OFF(READY) && !aiotrace_event_numbers(events[READY], ready->ns, &known->id))
            EMIT(READY, PyLong_FromLong(known->id));
    }
}

static void
begin_known(Step *step, Known *known, PyObject *task, const Ready *ready)
{
    step->known = known;
    step->task = Py_NewRef(task);
    step->ready = *ready;
    step->previous = aiotrace_get_task();
    step->is_delivered = 0;
    aiotrace_set_task(known->is_silent ? 0 : known->id);
    if (unlikely(known->name != NULL || (!known->is_named && commands_left > 0)) && !known->is_silent)
        tell_name(known, task);
    step->began = now_ns();
}

static void
tell_delivered(Step *step)
{
    step->is_delivered = 1;
    step->known->is_cancelled = 1;
    step->known->is_swallowed = 0;
    if (!IS_OFF(DELIVERED))
        EMIT(DELIVERED, PyLong_FromLong(step->known->id));
}

/* A step of an asyncio task begins, if the callback is one. `argument`: what the callback is called with, or NULL. */
static inline void
begin_step(Step *step, PyObject *callback, PyObject *argument, Ready *ready)
{
    PyObject *task;
    step->known = NULL;
    if (!is_active || !aiotrace_is_recording())
        return;
    Known *known = ready->known;
    if (likely(known != NULL)) { /* its reference is ours now */
        ready->known = NULL;
        task = referent(known->ref);
        if (unlikely(task == NULL || known->runs != runs)) {
            release(known);
            known = NULL;
        }
    }
    if (unlikely(known == NULL) && (task = task_of(callback)) == NULL)
        return;
    if (likely(known != NULL))
        ;
    else if ((known = find_task(task)) != NULL)
        known->holders++;
    else if ((known = know_task(task, ON_ASYNCIO, 0)) == NULL)
        return;
    begin_known(step, known, task, ready);
    if (known->is_silent)
        return;
    tell_cancels(known, task, NULL, 0);
    if (unlikely(known->cancels > 0) && (door_is_true(&door_must_cancel, task, is_fast(task)) ||
                                         (argument != NULL && door_is_true(&door_cancelled, argument, 0))))
        tell_delivered(step);
}

static PyObject *
line_of(PyObject *task)
{
    PyObject *line = PyObject_CallOneArg(find_line, task);
    if (line == NULL) {
        PyErr_WriteUnraisable(find_line);
        line = text_of(&unknown_name);
    }
    return line;
}

/* What became of a cancellation that was delivered: at the end of this step, and of later ones until it is clear. */
static void
tell_outcome(Step *step, int is_done, int is_cancelled, int is_handling)
{
    Known *known = step->known;
    long cancels = count_cancels(step->task);
    if (is_done) {
        known->is_cancelled = 0;
        if (is_cancelled)
            return;
        if (step->is_delivered && !IS_OFF(CAUGHT))
            EMIT(CAUGHT, PyLong_FromLong(known->id), Py_NewRef(known->coroutine ? known->coroutine : unknown_name.text));
        if (cancels > 0 && !known->is_swallowed && !IS_OFF(SWALLOWED))
            EMIT(SWALLOWED, PyLong_FromLong(known->id),
                 Py_NewRef(known->coroutine ? known->coroutine : unknown_name.text));
        return;
    }
    if (step->is_delivered && !IS_OFF(CAUGHT))
        EMIT(CAUGHT, PyLong_FromLong(known->id), line_of(step->task));
    if (is_handling)
        return;
    known->is_cancelled = 0; /* it goes on */
    known->is_swallowed = cancels > 0;
    if (cancels > 0 && !IS_OFF(SWALLOWED))
        EMIT(SWALLOWED, PyLong_FromLong(known->id), line_of(step->task));
}

static void
tell_done(Step *step, int is_cancelled, PyObject *error)
{
    Name exception = error == NULL || is_cancelled ? name_nothing : find_name((PyObject *)Py_TYPE(error), 0);
    tell_end(step->known->id, is_cancelled ? &name_cancelled : error != NULL ? &name_raised : &name_returned, &exception);
}

static void
record_step(Step *step, const Name *awaited)
{
    uint64_t now = now_ns();
    StepRecord record = {step->ready.ns, now > step->began ? now - step->began : 0, awaited->key, step->ready.waker};
    if (unlikely(!aiotrace_event_numbers(events[STEP], now, &record)))
        EMIT(STEP, PyLong_FromUnsignedLongLong(record.ready_ns), PyLong_FromUnsignedLongLong(record.duration_ns),
             text_of(awaited), PyLong_FromLong(record.waker));
}

static void
leave(Step *step)
{
    aiotrace_set_task(step->previous);
    release(step->known);
    Py_DECREF(step->task);
}

/* The end of a step of an asyncio task. */
static void
end_step(Step *step)
{
    Known *known = step->known;
    if (known == NULL)
        return;
    if (unlikely(known->is_silent)) {
        leave(step);
        return;
    }
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    if (unlikely(PyErr_Occurred() != NULL))
        PyErr_Fetch(&type, &value, &traceback);
    PyObject *task = step->task;
    int fast = is_fast(task), is_done = 0, is_handling = 0, depth = 0;
    Name awaited = name_yield;
    PyObject *waiter = read_door(&door_waiter, task, fast);
    if (waiter == NULL || waiter == Py_None)
        is_done = door_is_true(&door_done, task, fast);
    if (is_done) {
        awaited = name_done;
    }
    else if (!IS_OFF(STEP) || known->is_cancelled) {
        PyObject *coroutine = read_door(&door_coro, task, fast);
        PyObject *innermost = find_innermost(coroutine, &depth, &awaited, &is_handling);
        if (innermost == NULL || depth == 0) {
            awaited = name_yield;
            if (waiter != NULL && waiter != Py_None)
                awaited = find_name((PyObject *)Py_TYPE(waiter), 0);
        }
        Py_XDECREF(innermost);
        Py_XDECREF(coroutine);
    }
    Py_XDECREF(waiter);
    record_step(step, &awaited);
    int is_cancelled = is_done && door_is_true(&door_cancelled, task, fast);
    if (unlikely(known->is_cancelled || (is_done && known->cancels > 0)))
        tell_outcome(step, is_done, is_cancelled, is_handling);
    if (is_done) {
        PyObject *error = is_cancelled ? NULL : read_door(&door_exception, task, fast);
        if (error == Py_None)
            Py_CLEAR(error);
        tell_done(step, is_cancelled, error);
        Py_XDECREF(error);
        forget_task(task, known);
    }
    else {
        tell_cancels(known, task, NULL, 1); /* it asked for its own */
    }
    go_on_with_round(step->began);
    leave(step);
    if (type != NULL)
        PyErr_Restore(type, value, traceback);
}

/* --- asyncio: Handle ------------------------------------------------------------------------------------------ */

enum { S_CALLBACK, S_ARGS, S_CANCELLED, S_LOOP, S_TRACEBACK, S_REPR, S_CONTEXT, SLOTS };
static const char *const slot_names[SLOTS] = {"_callback", "_args", "_cancelled", "_loop", "_source_traceback",
                                              "_repr",     "_context"};
static Py_ssize_t slot_offsets[SLOTS];
static Py_ssize_t extra_offset;
static PyTypeObject *handle_type;
static PyObject *python_init, *python_run;
static PyObject *get_debug_name, *debug_name, *plain_get_debug;
static PyTypeObject *last_loop_type; /* held: a loop type whose get_debug is BaseEventLoop's */

#define FREE_HANDLES 64
static PyObject *free_handles[FREE_HANDLES];
static int free_handles_count;

#define SLOT(self, n) (*(PyObject **)((char *)(self) + slot_offsets[n]))
#define EXTRA(self) ((Ready *)((char *)(self) + extra_offset))

/* Whether a loop is in debug mode: 1, 0, or -1 with an exception. */
static int
is_debug(PyObject *loop)
{
    PyObject *value;
    if (unlikely(Py_TYPE(loop) != last_loop_type)) {
        PyObject *found = PyObject_GetAttr((PyObject *)Py_TYPE(loop), get_debug_name);
        if (found == NULL)
            PyErr_Clear();
        int is_plain = found == plain_get_debug;
        Py_XDECREF(found);
        if (!is_plain) {
            value = PyObject_CallMethodNoArgs(loop, get_debug_name);
            goto answer;
        }
        Py_INCREF(Py_TYPE(loop));
        Py_XSETREF(last_loop_type, Py_TYPE(loop));
    }
    PyObject **dict = _PyObject_GetDictPtr(loop); /* where it is nearly always: some 40 ns less */
    if (likely(dict != NULL && *dict != NULL && (value = PyDict_GetItemWithError(*dict, debug_name)) != NULL))
        return value == Py_False ? 0 : PyObject_IsTrue(value);
    PyErr_Clear();
    value = PyObject_GetAttr(loop, debug_name);
answer:
    if (value == NULL)
        return -1;
    int is_true = value == Py_False ? 0 : PyObject_IsTrue(value);
    Py_DECREF(value);
    return is_true;
}

static inline void
forget_ready(Ready *ready)
{
    Known *known = ready->known;
    ready->known = NULL;
    if (known != NULL)
        release(known);
}

static inline PyObject *
first_of(PyObject *args)
{
    return args != NULL && PyTuple_CheckExact(args) && PyTuple_GET_SIZE(args) ? PyTuple_GET_ITEM(args, 0) : NULL;
}

static inline void
handle_made(PyObject *self)
{
    PyObject *callback = SLOT(self, S_CALLBACK);
    PyObject *args = SLOT(self, S_ARGS);
    if (is_active && callback != NULL && aiotrace_is_recording())
        made_ready(callback, first_of(args), EXTRA(self));
}

static int
handle_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    Py_ssize_t count = PyTuple_GET_SIZE(args);
    PyObject *all = PyTuple_New(count + 1);
    if (all == NULL)
        return -1;
    PyTuple_SET_ITEM(all, 0, Py_NewRef(self));
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(all, i + 1, Py_NewRef(PyTuple_GET_ITEM(args, i)));
    PyObject *result = PyObject_Call(python_init, all, keywords);
    Py_DECREF(all);
    if (result == NULL)
        return -1;
    Py_DECREF(result);
    handle_made(self);
    return 0;
}

/* An untracked handle, empty. Each callback has one, so a few that are free are kept. */
static PyObject *
new_handle(PyTypeObject *type)
{
    PyObject *self;
    if (likely(type == handle_type && free_handles_count > 0)) {
        self = free_handles[--free_handles_count];
        return PyObject_Init(self, type);
    }
    if ((self = type->tp_alloc(type, 0)) != NULL)
        PyObject_GC_UnTrack(self);
    return self;
}

static PyObject *
handle_vectorcall(PyObject *type, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    PyTypeObject *cls = (PyTypeObject *)type;
    int debug = 1;
    if (keywords == NULL && (count == 3 || count == 4) && (debug = is_debug(args[2])) < 0)
        return NULL;
    PyObject *self = new_handle(cls);
    if (self == NULL)
        return NULL;
    if (debug) { /* or called in another way: as Python does it */
        PyObject *stack[8], *result = NULL;
        Py_ssize_t all = count + (keywords != NULL ? PyTuple_GET_SIZE(keywords) : 0);
        if (all > 7) {
            PyErr_SetString(PyExc_TypeError, "Handle() takes at most 4 arguments");
        }
        else {
            stack[0] = self;
            memcpy(stack + 1, args, (size_t)all * sizeof *args);
            result = PyObject_Vectorcall(python_init, stack, (size_t)count + 1, keywords);
        }
        if (result == NULL) {
            PyObject_GC_Track(self);
            Py_DECREF(self);
            return NULL;
        }
        Py_DECREF(result);
    }
    else {
        PyObject *context = count == 4 && args[3] != Py_None ? Py_NewRef(args[3]) : PyContext_CopyCurrent();
        if (context == NULL) {
            PyObject_GC_Track(self);
            Py_DECREF(self);
            return NULL;
        }
        SLOT(self, S_CONTEXT) = context;
        SLOT(self, S_CALLBACK) = Py_NewRef(args[0]);
        SLOT(self, S_ARGS) = Py_NewRef(args[1]);
        SLOT(self, S_LOOP) = Py_NewRef(args[2]);
        SLOT(self, S_CANCELLED) = Py_NewRef(Py_False);
        SLOT(self, S_TRACEBACK) = Py_NewRef(Py_None);
        SLOT(self, S_REPR) = Py_NewRef(Py_None);
    }
    PyObject_GC_Track(self);
    handle_made(self);
    return self;
}

static int
handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; i < SLOTS; i++)
        Py_VISIT(SLOT(self, i));
    return 0;
}

static int
handle_clear(PyObject *self)
{
    for (int i = 0; i < SLOTS; i++)
        Py_CLEAR(SLOT(self, i));
    return 0;
}

static void
handle_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, handle_dealloc)
    PyObject_ClearWeakRefs(self);
    handle_clear(self);
    forget_ready(EXTRA(self));
    *EXTRA(self) = (Ready){NULL, 0, 0};
    if (type == handle_type && free_handles_count < FREE_HANDLES)
        free_handles[free_handles_count++] = self;
    else
        type->tp_free(self);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

/* Call in a context, as Context.run does. */
static PyObject *
run_in_context(PyObject *context, PyObject *callback, PyObject *args)
{
    if (PyContext_Enter(context) < 0)
        return NULL;
    PyObject *result = PyObject_Vectorcall(callback, &PyTuple_GET_ITEM(args, 0), (size_t)PyTuple_GET_SIZE(args), NULL);
    if (unlikely(result == NULL)) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (PyContext_Exit(context) < 0) {
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(traceback);
        }
        else {
            PyErr_Restore(type, value, traceback);
        }
    }
    else if (PyContext_Exit(context) < 0) {
        Py_CLEAR(result);
    }
    return result;
}

/* Give an exception of a callback to the loop's handler, as Handle._run does. */
static PyObject *
report_exception(PyObject *self)
{
    PyObject *type, *value, *traceback;
    if (PyErr_ExceptionMatches(PyExc_SystemExit) || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    PyObject *handled = PyErr_GetHandledException();
    PyErr_SetHandledException(value);
    PyObject *stack[] = {self, value};
    PyObject *result = PyObject_Vectorcall(report, stack, 2, NULL);
    PyErr_SetHandledException(handled);
    Py_XDECREF(handled);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return result;
}

static PyObject *
handle_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *callback = Py_XNewRef(SLOT(self, S_CALLBACK)), *args = Py_XNewRef(SLOT(self, S_ARGS)),
             *context = Py_XNewRef(SLOT(self, S_CONTEXT)), *result;
    Step step = {.known = NULL};
    if (unlikely(is_preset)) {
        is_preset = 0;
        aiotrace_set_task(0);
    }
    if (likely(callback != NULL))
        begin_step(&step, callback, first_of(args), EXTRA(self));
    if (likely(callback != NULL && args != NULL && PyTuple_CheckExact(args) && context != NULL && PyContext_CheckExact(context))) {
        result = run_in_context(context, callback, args);
        end_step(&step);
        if (unlikely(result == NULL)) {
            result = report_exception(self);
        }
        else {
            Py_SETREF(result, Py_NewRef(Py_None));
        }
    }
    else { /* a context of somebody's own, or a handle that was cancelled: as Python does it */
        result = PyObject_CallOneArg(python_run, self);
        end_step(&step);
    }
    Py_XDECREF(callback);
    Py_XDECREF(args);
    Py_XDECREF(context);
    return result;
}

static PyMethodDef handle_methods[] = {
    {"_run", handle_run, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "Object returned by callback registration methods."},
    {Py_tp_init, handle_init},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, handle_methods},
    {0, NULL},
};

PyDoc_STRVAR(task_handle_doc,
             "task_handle(base, get_debug, report)\n--\n\n"
             "A subclass of asyncio.events.Handle that traces. ValueError if its objects are not as we know them.\n\n"
             "get_debug is BaseEventLoop's; report(handle, exception) does what Handle does of an exception.");

static PyObject *
task_handle(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *base;
    PyObject *get_debug, *new_report;
    if (!PyArg_ParseTuple(args, "O!OO:task_handle", &PyType_Type, &base, &get_debug, &new_report))
        return NULL;
    if (handle_type != NULL)
        return Py_NewRef((PyObject *)handle_type);
    Py_ssize_t size = sizeof(PyObject) + SLOTS * sizeof(PyObject *);
    for (int i = 0; i < SLOTS; i++) {
        PyObject *found = PyObject_GetAttrString((PyObject *)base, slot_names[i]);
        if (found == NULL)
            return NULL;
        int is_slot = Py_TYPE(found) == &PyMemberDescr_Type && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX;
        slot_offsets[i] = is_slot ? ((PyMemberDescrObject *)found)->d_member->offset : -1;
        Py_DECREF(found);
        if (!is_slot)
            goto unknown;
    }
    if (base->tp_weaklistoffset > 0) /* else it lies in front of the object */
        size += sizeof(PyObject *);
    if (base->tp_basicsize != size || base->tp_dictoffset != 0)
        goto unknown;
    get_debug_name = PyUnicode_InternFromString("get_debug");
    debug_name = PyUnicode_InternFromString("_debug");
    python_init = PyObject_GetAttrString((PyObject *)base, "__init__");
    python_run = PyObject_GetAttrString((PyObject *)base, "_run");
    if (get_debug_name == NULL || debug_name == NULL || python_init == NULL || python_run == NULL)
        return NULL;
    plain_get_debug = Py_NewRef(get_debug);
    report = Py_NewRef(new_report);
    extra_offset = size;
    PyType_Spec spec = {"asyncio.events.Handle", (int)(size + sizeof(Ready)), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, handle_slots};
    PyTypeObject *made = (PyTypeObject *)PyType_FromSpecWithBases(&spec, (PyObject *)base);
    if (made == NULL)
        return NULL;
    made->tp_vectorcall = handle_vectorcall;
    handle_type = made;
    return Py_NewRef((PyObject *)made);
unknown:
    PyErr_Format(PyExc_ValueError, "%R is not as we know it", base);
    return NULL;
}

/* --- uvloop: Step ----------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *callback;
    Ready ready;
} Callback;

static PyTypeObject *callback_type;
static Callback *free_callbacks[FREE_HANDLES];
static int free_callbacks_count;
static PyObject *call_soon; /* the loop's own */

static PyObject *
callback_vectorcall(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    PyObject *callback = Py_NewRef(((Callback *)callable)->callback);
    Step step;
    begin_step(&step, callback, PyVectorcall_NARGS(nargsf) ? args[0] : NULL, &((Callback *)callable)->ready);
    PyObject *result = PyObject_Vectorcall(callback, args, nargsf, keywords);
    end_step(&step);
    Py_DECREF(callback);
    return result;
}

static int
callback_traverse(Callback *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->callback);
    return 0;
}

static void
callback_dealloc(Callback *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->callback);
    forget_ready(&self->ready);
    if (free_callbacks_count < FREE_HANDLES)
        free_callbacks[free_callbacks_count++] = self;
    else
        type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *
callback_getattro(PyObject *self, PyObject *name)
{
    return PyObject_GetAttr(((Callback *)self)->callback, name);
}

static PyObject *
callback_repr(PyObject *self)
{
    return PyObject_Repr(((Callback *)self)->callback);
}

static PyMemberDef callback_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Callback, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot callback_slots[] = {
    {Py_tp_call, PyVectorcall_Call},       {Py_tp_traverse, callback_traverse}, {Py_tp_dealloc, callback_dealloc},
    {Py_tp_getattro, callback_getattro},   {Py_tp_repr, callback_repr},         {Py_tp_members, callback_members},
    {0, NULL},
};

static PyType_Spec callback_spec = {
    "aiotrace._c.Callback",
    sizeof(Callback),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    callback_slots,
};

static PyObject *
traced_call_soon(PyObject *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    PyObject *small[8], **stack = small, *stand_in = NULL;
    size_t all = (size_t)nargs + (keywords != NULL ? (size_t)PyTuple_GET_SIZE(keywords) : 0);
    if (all + 1 > 8 && (stack = PyMem_Malloc((all + 1) * sizeof *stack)) == NULL)
        return PyErr_NoMemory();
    stack[0] = loop;
    memcpy(stack + 1, args, all * sizeof *args);
    if (nargs > 0 && is_active && aiotrace_is_recording() && task_of(args[0]) != NULL) {
        Callback *made = free_callbacks_count ? (Callback *)PyObject_Init((PyObject *)free_callbacks[--free_callbacks_count],
                                                                          callback_type)
                                              : PyObject_GC_New(Callback, callback_type);
        if (made == NULL) {
            PyErr_Clear();
        }
        else {
            made->vectorcall = callback_vectorcall;
            made->callback = Py_NewRef(args[0]);
            made->ready = (Ready){NULL, 0, 0};
            made_ready(args[0], nargs > 1 ? args[1] : NULL, &made->ready);
            PyObject_GC_Track(made);
            stack[1] = stand_in = (PyObject *)made;
        }
    }
    PyObject *result = PyObject_Vectorcall(call_soon, stack, (size_t)nargs + 1, keywords);
    Py_XDECREF(stand_in);
    if (stack != small)
        PyMem_Free(stack);
    return result;
}

static PyMethodDef call_soon_def = {"call_soon", (PyCFunction)(void (*)(void))traced_call_soon,
                                    METH_FASTCALL | METH_KEYWORDS, NULL};

PyDoc_STRVAR(task_call_soon_doc,
             "task_call_soon(type, original)\n--\n\nWhat stands for call_soon in a type of loops.");

static PyObject *
task_call_soon(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *type;
    PyObject *original;
    if (!PyArg_ParseTuple(args, "O!O:task_call_soon", &PyType_Type, &type, &original))
        return NULL;
    Py_XSETREF(call_soon, Py_NewRef(original));
    return PyDescr_NewMethod(type, &call_soon_def);
}

/* --- asyncio: iterations ----------------------------------------------------------------------------------------- */

static PyObject *iteration; /* the event */
static PyObject *select_method; /* the selector's own */
static PyObject *get_running_loop, *selector_name, *ready_name, *scheduled_name, *when_name;

/* What loop:iteration holds; the order and the padding of _tracers/loops.py's definition. */
typedef struct {
    uint32_t ready, padding;
    uint64_t poll_ns, late_ns;
} IterationRecord;

/* Record an iteration: its loop has just been told what files are ready. */
static void
tell_iteration(PyObject *selector, PyObject *found, uint64_t began)
{
    uint64_t now = now_ns(), late = 0;
    PyObject *loop = PyObject_CallNoArgs(get_running_loop);
    PyObject *own = loop == NULL || loop == Py_None ? NULL : PyObject_GetAttr(loop, selector_name);
    if (own == selector) { /* others use selectors too */
        PyObject *ready = PyObject_GetAttr(loop, ready_name), *timers = PyObject_GetAttr(loop, scheduled_name);
        Py_ssize_t count = ready == NULL ? -1 : PyObject_Size(ready), more = PyObject_Size(found);
        if (timers != NULL && PyList_CheckExact(timers) && PyList_GET_SIZE(timers)) {
            PyObject *when = PyObject_GetAttr(PyList_GET_ITEM(timers, 0), when_name);
            double due = when == NULL ? -1 : PyFloat_AsDouble(when);
            if (due > 0 && due * 1e9 < (double)now)
                late = now - (uint64_t)(due * 1e9);
            Py_XDECREF(when);
        }
        PyErr_Clear();
        if (count >= 0 && more >= 0) {
            IterationRecord record = {(uint32_t)(count + more), 0, now > began ? now - began : 0, late};
            if (!aiotrace_event_numbers(iteration, now, &record))
                call_event(iteration, 3,
                           (PyObject *[]){PyLong_FromUnsignedLong(record.ready), PyLong_FromUnsignedLongLong(record.poll_ns),
                                          PyLong_FromUnsignedLongLong(late)});
        }
        Py_XDECREF(ready);
        Py_XDECREF(timers);
    }
    PyErr_Clear();
    Py_XDECREF(own);
    Py_XDECREF(loop);
}

static PyObject *
traced_select(PyObject *selector, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    PyObject *stack[4];
    size_t all = (size_t)nargs + (keywords != NULL ? (size_t)PyTuple_GET_SIZE(keywords) : 0);
    if (all > 3) {
        PyErr_SetString(PyExc_TypeError, "select() takes at most 1 argument");
        return NULL;
    }
    stack[0] = selector;
    memcpy(stack + 1, args, all * sizeof *args);
    int is_wanted = !aiotrace_event_is_off(iteration);
    uint64_t began = is_wanted ? now_ns() : 0;
    PyObject *found = PyObject_Vectorcall(select_method, stack, (size_t)nargs + 1, keywords);
    if (is_wanted && found != NULL)
        tell_iteration(selector, found, began);
    return found;
}

static PyMethodDef select_def = {"select", (PyCFunction)(void (*)(void))traced_select, METH_FASTCALL | METH_KEYWORDS,
                                 NULL};

PyDoc_STRVAR(task_select_doc,
             "task_select(type, original, get_running_loop, event)\n--\n\n"
             "What stands for select in a type of selectors, and records the iterations of loops.");

static PyObject *
task_select(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *type;
    PyObject *original, *running, *event;
    if (!PyArg_ParseTuple(args, "O!OOO:task_select", &PyType_Type, &type, &original, &running, &event))
        return NULL;
    if (!aiotrace_event_check(event)) {
        PyErr_SetString(PyExc_TypeError, "task_select takes an event of ours");
        return NULL;
    }
    start_clock();
    if ((selector_name = PyUnicode_InternFromString("_selector")) == NULL ||
        (ready_name = PyUnicode_InternFromString("_ready")) == NULL ||
        (scheduled_name = PyUnicode_InternFromString("_scheduled")) == NULL ||
        (when_name = PyUnicode_InternFromString("_when")) == NULL)
        return NULL;
    Py_XSETREF(select_method, Py_NewRef(original));
    Py_XSETREF(get_running_loop, Py_NewRef(running));
    Py_XSETREF(iteration, Py_NewRef(event));
    return PyDescr_NewMethod(type, &select_def);
}

/* --- eager factories ---------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(task_make_doc,
             "task_make(factory, loop, coroutine, /, **keywords)\n--\n\n"
             "Call a task factory. A task that runs at once does so under an id of its own, and its step is recorded.");

static PyObject *
task_make(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "task_make takes a factory, a loop and a coroutine");
        return NULL;
    }
    if (!is_active || !aiotrace_is_recording())
        return PyObject_Vectorcall(args[0], args + 1, 2, keywords);
    Making here = {args[2], new_id(), aiotrace_get_task(), NULL, making};
    int32_t previous = here.parent;
    uint64_t began = now_ns();
    making = &here;
    aiotrace_set_task(here.id);
    PyObject *task = PyObject_Vectorcall(args[0], args + 1, 2, keywords);
    aiotrace_set_task(previous);
    if (task != NULL && task_type != NULL && PyObject_TypeCheck(task, task_type) && find_task(task) == NULL) {
        Step step;
        here.task = task;
        Known *known = know_task(task, ON_ASYNCIO, 1);
        making = here.outer;
        if (known != NULL) {
            begin_known(&step, known, task, &(Ready){NULL, 0, 0});
            step.began = began;
            end_step(&step);
        }
    }
    making = here.outer;
    return task;
}

/* --- trio: Coroutine ------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *inner;
    PyObject *task_ref; /* the task holds us */
} Coroutine;

static PyTypeObject *coroutine_type;

static int
begin_trio(Coroutine *self, Step *step, PyObject *sent)
{
    PyObject *task = referent(self->task_ref);
    step->known = NULL;
    if (!is_active || !aiotrace_is_recording() || task == NULL)
        return 0;
    Py_INCREF(task);
    Known *known = find_task(task);
    if (likely(known != NULL))
        known->holders++;
    else
        known = know_task(task, ON_TRIO, 0);
    if (known != NULL) {
        begin_known(step, known, task, &(Ready){NULL, 0, 0});
        if (sent != NULL && Py_TYPE(sent) == trio_error) {
            PyObject *error = PyObject_GetAttrString(sent, "error");
            if (error == NULL)
                PyErr_Clear();
            else if (trio_cancelled != NULL && PyObject_TypeCheck(error, (PyTypeObject *)trio_cancelled))
                step->is_delivered = 1;
            Py_XDECREF(error);
        }
    }
    Py_DECREF(task);
    return known != NULL;
}

/* The end of a step: `yielded` is what it gave to the runner; NULL: it is done, and a pending exception is its end. */
static void
end_trio(Coroutine *self, Step *step, PyObject *yielded)
{
    Known *known = step->known;
    if (known == NULL)
        return;
    if (known->is_silent) {
        leave(step);
        return;
    }
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    if (type != NULL)
        PyErr_NormalizeException(&type, &value, &traceback);
    Name awaited = name_done;
    int depth = 0, is_handling = 0;
    if (yielded != NULL) {
        PyObject *innermost = find_innermost(self->inner, &depth, &awaited, &is_handling);
        if (innermost == NULL || depth == 0)
            awaited = find_name((PyObject *)Py_TYPE(yielded), 0);
        Py_XDECREF(innermost);
    }
    record_step(step, &awaited);
    int is_stop = value == NULL || PyObject_TypeCheck(value, (PyTypeObject *)PyExc_StopIteration);
    int is_cancelled = !is_stop && is_cancelled_error(value);
    if (unlikely(step->is_delivered && (yielded == NULL ? is_cancelled : is_handling))) {
        /* only now: every sleep of trio's ends by a cancellation that the sleep itself takes back */
        if (!known->is_cancelled && !IS_OFF(DELIVERED))
            EMIT(DELIVERED, PyLong_FromLong(known->id));
        known->is_cancelled = 1;
        if (yielded != NULL && !IS_OFF(CAUGHT))
            EMIT(CAUGHT, PyLong_FromLong(known->id), line_of(step->task));
    }
    if (yielded == NULL) {
        tell_done(step, is_cancelled, is_stop ? NULL : value);
        forget_task(step->task, known);
    }
    go_on_with_round(step->began);
    leave(step);
    if (type != NULL)
        PyErr_Restore(type, value, traceback);
}

static PySendResult
coroutine_am_send(PyObject *self, PyObject *sent, PyObject **result)
{
    Coroutine *own = (Coroutine *)self;
    Step step;
    begin_trio(own, &step, sent);
    PySendResult outcome = PyIter_Send(own->inner, sent, result);
    end_trio(own, &step, outcome == PYGEN_NEXT ? *result : NULL);
    return outcome;
}

static PyObject *
coroutine_send(PyObject *self, PyObject *sent)
{
    PyObject *result;
    switch (coroutine_am_send(self, sent, &result)) {
    case PYGEN_NEXT:
        return result;
    case PYGEN_ERROR:
        return NULL;
    default:
        break;
    }
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result); /* a tuple stays one value */
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *
coroutine_throw(PyObject *self, PyObject *args)
{
    Coroutine *own = (Coroutine *)self;
    Step step;
    PyObject *throw = PyObject_GetAttrString(own->inner, "throw");
    if (throw == NULL)
        return NULL;
    begin_trio(own, &step, NULL);
    PyObject *result = PyObject_Call(throw, args, NULL);
    end_trio(own, &step, result);
    Py_DECREF(throw);
    return result;
}

static PyObject *
coroutine_getattro(PyObject *self, PyObject *name)
{
    static PyObject *send, *throw;
    if (send == NULL && ((send = PyUnicode_InternFromString("send")) == NULL ||
                         (throw = PyUnicode_InternFromString("throw")) == NULL))
        return NULL;
    if (name == send || name == throw || PyUnicode_Compare(name, send) == 0 || PyUnicode_Compare(name, throw) == 0)
        return PyObject_GenericGetAttr(self, name);
    return PyObject_GetAttr(((Coroutine *)self)->inner, name); /* __class__ too: it looks as it did */
}

static PyObject *
coroutine_repr(PyObject *self)
{
    return PyObject_Repr(((Coroutine *)self)->inner);
}

static PyObject *
coroutine_await(PyObject *self)
{
    static PyObject *name;
    if (name == NULL && (name = PyUnicode_InternFromString("__await__")) == NULL)
        return NULL;
    return PyObject_CallMethodNoArgs(((Coroutine *)self)->inner, name);
}

static int
coroutine_traverse(Coroutine *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->inner);
    Py_VISIT(self->task_ref);
    return 0;
}

static void
coroutine_dealloc(Coroutine *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->inner);
    Py_CLEAR(self->task_ref);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef coroutine_methods[] = {
    {"send", coroutine_send, METH_O, NULL},
    {"throw", coroutine_throw, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot coroutine_slots[] = {
    {Py_tp_getattro, coroutine_getattro}, {Py_tp_repr, coroutine_repr},       {Py_tp_traverse, coroutine_traverse},
    {Py_tp_dealloc, coroutine_dealloc},   {Py_tp_methods, coroutine_methods}, {Py_am_send, coroutine_am_send},
    {Py_am_await, coroutine_await},       {0, NULL},
};

static PyType_Spec coroutine_spec = {
    "aiotrace._c.Coroutine",
    sizeof(Coroutine),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    coroutine_slots,
};

PyDoc_STRVAR(task_wrap_doc,
             "task_wrap(task, is_new)\n--\n\n"
             "What stands for a trio task's coroutine, which it has as `coro`. Its spawn is recorded if it is new.");

static PyObject *
task_wrap(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task;
    int is_new;
    if (!PyArg_ParseTuple(args, "Op:task_wrap", &task, &is_new))
        return NULL;
    PyObject *inner = PyObject_GetAttrString(task, "coro");
    if (inner == NULL || Py_TYPE(inner) == coroutine_type)
        return inner;
    Known *known = know_task(task, ON_TRIO, is_new);
    if (known != NULL)
        release(known);
    PyObject *ref = PyWeakref_NewRef(task, NULL);
    Coroutine *made = ref == NULL ? NULL : PyObject_GC_New(Coroutine, coroutine_type);
    if (made == NULL) {
        Py_XDECREF(ref);
        Py_DECREF(inner);
        return NULL;
    }
    made->inner = inner;
    made->task_ref = ref;
    PyObject_GC_Track(made);
    return (PyObject *)made;
}

PyDoc_STRVAR(task_cancelled_doc,
             "task_cancelled(task, message)\n--\n\nWhat runs here asks for the cancellation of a trio task.");

static PyObject *
task_cancelled(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task, *message;
    if (!PyArg_ParseTuple(args, "OU:task_cancelled", &task, &message))
        return NULL;
    Known *known = find_task(task);
    if (known != NULL && !known->is_silent && !IS_OFF(CANCEL)) {
        int32_t id = known->id;
        Name site = find_site();
        EMIT(CANCEL, PyLong_FromLong(id), PyLong_FromLong(aiotrace_get_task()), text_of(&site), Py_NewRef(message));
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_unwrap_doc, "task_unwrap(coroutine)\n--\n\nThe coroutine that `task_wrap` was given, or the same.");

static PyObject *
task_unwrap(PyObject *Py_UNUSED(module), PyObject *coroutine)
{
    return Py_NewRef(Py_TYPE(coroutine) == coroutine_type ? ((Coroutine *)coroutine)->inner : coroutine);
}

/* --- start and stop --------------------------------------------------------------------------------------------------- */

static void
forget_all(void)
{
    while (tasks_used) {
        for (size_t i = 0; i < tasks_size; i++)
            while (tasks[i] != NULL)
                remove_at(i);
    }
}

static void
begin_ids(uint32_t next)
{
    first_id = base_id();
    next_id = next;
    unchecked_ids = 0; /* look first */
}

static int
take_name(Name *name, const char *text)
{
    PyObject *object = PyUnicode_InternFromString(text);
    if (object == NULL)
        return -1;
    if (name->text == NULL) {
        PyObject *answer = PyObject_CallFunction(describe, "Oi", object, 0);
        unsigned long long key;
        PyObject *shown;
        if (answer == NULL || !PyArg_ParseTuple(answer, "OKi", &shown, &key, &name->flags)) {
            Py_XDECREF(answer);
            Py_DECREF(object);
            return -1;
        }
        name->text = Py_NewRef(shown);
        name->key = key;
        Py_DECREF(answer);
    }
    Py_DECREF(object);
    return 0;
}

static PyObject *
item(PyObject *dict, const char *name)
{
    PyObject *value = PyDict_GetItemString(dict, name);
    if (value == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_KeyError, name);
    return value;
}

/* Hold what Python gave us, once for the process. */
static int
take(PyObject **place, PyObject *dict, const char *name)
{
    PyObject *value = item(dict, name);
    if (value == NULL)
        return -1;
    Py_XSETREF(*place, value == Py_None ? NULL : Py_NewRef(value));
    return 0;
}

PyDoc_STRVAR(task_start_doc,
             "task_start(parts)\n--\n\n"
             "Trace from now on what runs through our hooks. `parts`: events, functions and types, by name; see\n"
             "_tracers/task.py, which alone calls this.");

static PyObject *
task_start(PyObject *Py_UNUSED(module), PyObject *parts)
{
    if (!PyDict_Check(parts)) {
        PyErr_SetString(PyExc_TypeError, "parts is a dict");
        return NULL;
    }
    for (int i = 0; i < EVENTS; i++) {
        PyObject *event = item(parts, event_names[i]);
        if (event == NULL)
            return NULL;
        if (!aiotrace_event_check(event)) {
            PyErr_Format(PyExc_TypeError, "%s is no event of ours", event_names[i]);
            return NULL;
        }
        Py_XSETREF(events[i], Py_NewRef(event));
    }
    PyObject *sample;
    if (take(&describe, parts, "describe") < 0 || take(&name_command, parts, "name_command") < 0 ||
        take(&find_line, parts, "find_line") < 0 || take(&find_inner, parts, "find_inner") < 0 || take((PyObject **)&task_type, parts, "task_type") < 0 ||
        take((PyObject **)&step_type, parts, "step_type") < 0 || take(&python_step, parts, "python_step") < 0 ||
        take(&python_wakeup, parts, "python_wakeup") < 0 || take(&cancelled_error, parts, "cancelled_error") < 0 ||
        take(&trio_cancelled, parts, "trio_cancelled") < 0 || take((PyObject **)&trio_error, parts, "trio_error") < 0 ||
        (sample = item(parts, "wakeup")) == NULL)
        return NULL;
    wakeup = Py_TYPE(sample) == &PyCFunction_Type ? PyCFunction_GET_FUNCTION(sample) : NULL;
    Door *of_task[] = {&door_waiter, &door_must_cancel, &door_coro, &door_exception, &door_done, &door_cancelled,
                       &door_cancelling, &door_name};
    for (size_t i = 0; i < sizeof of_task / sizeof *of_task; i++)
        if (open_door(of_task[i], task_type) < 0)
            return NULL;
    if (open_door(&door_await, &PyCoro_Type) < 0 || open_door(&door_code, &PyCoro_Type) < 0 ||
        open_door(&door_trio_name, NULL) < 0 || open_door(&door_self, step_type) < 0)
        return NULL;
    if (door_self.get == NULL)
        step_type = NULL;
    if (zero == NULL && (zero = PyLong_FromLong(0)) == NULL)
        return NULL;
    if (take_name(&unknown_name, "?") < 0 || take_name(&name_yield, "yield") < 0 || take_name(&name_done, "done") < 0 ||
        take_name(&name_nothing, "") < 0 || take_name(&name_returned, "returned") < 0 ||
        take_name(&name_raised, "raised") < 0 || take_name(&name_cancelled, "cancelled") < 0 ||
        take_name(&name_lost, "lost") < 0)
        return NULL;
    if (first_id != base_id())
        begin_ids(0);
    commands_left = COMMANDS_A_ROUND;
    if (!is_active)
        runs++;
    start_clock();
    round_began = now_ns();
    round_place = tasks_size;
    is_active = 1;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_know_doc, "task_know(task)\n--\n\nA task that was there before: know it, and say that it is alive.");

static PyObject *
task_know(PyObject *Py_UNUSED(module), PyObject *task)
{
    Known *known = know_task(task, ON_ASYNCIO, 0);
    if (known != NULL) {
        if (!known->is_silent && !IS_OFF(ALIVE))
            EMIT(ALIVE, PyLong_FromLong(known->id), PyLong_FromLong(known->parent), name_of(task, ON_ASYNCIO),
                 Py_NewRef(known->coroutine != NULL ? known->coroutine : unknown_name.text));
        known->cancels = count_cancels(task);
        release(known);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_round_doc, "task_round()\n--\n\nWrite a keyframe of all tasks now.");

static PyObject *
task_round(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    begin_round(now_ns());
    while (round_place < tasks_size)
        write_round(SLICE);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_forked_doc,
             "task_forked()\n--\n\nIn a forked child: its tasks are not the parent's, and its ids neither.");

static PyObject *
task_forked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    aiotrace_set_task(0);
    forget_all();
    begin_ids(0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_ids_doc, "task_ids(next)\n--\n\nLet ids go on with the one of that number; for tests.");

static PyObject *
task_ids(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long next = PyLong_AsUnsignedLong(argument);
    if (next == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    begin_ids((uint32_t)(next % IDS));
    return PyLong_FromLong(first_id);
}

PyDoc_STRVAR(task_running_doc,
             "task_running(task)\n--\n\nA known task runs here just now, in a step that began before tracing did.");

static PyObject *
task_running(PyObject *Py_UNUSED(module), PyObject *task)
{
    Known *known = find_task(task);
    if (known != NULL && !known->is_silent) {
        is_preset = 1;
        aiotrace_set_task(known->id);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_stop_doc, "task_stop()\n--\n\nTrace no more, and forget all tasks.");

static PyObject *
task_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    is_active = 0;
    forget_all();
    aiotrace_set_task(0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_id_doc, "task_id(task)\n--\n\nThe id of a task; 0 if it is not known.");

static PyObject *
task_id(PyObject *Py_UNUSED(module), PyObject *task)
{
    Known *known = find_task(task);
    return PyLong_FromLong(known == NULL || known->is_silent ? 0 : known->id);
}

PyDoc_STRVAR(task_counts_doc, "task_counts()\n--\n\nHow many tasks and names are known, for tests.");

static PyObject *
task_counts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("nn", (Py_ssize_t)tasks_used, (Py_ssize_t)names_used);
}

static PyMethodDef functions[] = {
    {"task_call_soon", task_call_soon, METH_VARARGS, task_call_soon_doc},
    {"task_cancelled", task_cancelled, METH_VARARGS, task_cancelled_doc},
    {"task_counts", task_counts, METH_NOARGS, task_counts_doc},
    {"task_handle", task_handle, METH_VARARGS, task_handle_doc},
    {"task_id", task_id, METH_O, task_id_doc},
    {"task_know", task_know, METH_O, task_know_doc},
    {"task_make", (PyCFunction)(void (*)(void))task_make, METH_FASTCALL | METH_KEYWORDS, task_make_doc},
    {"task_running", task_running, METH_O, task_running_doc},
    {"task_forked", task_forked, METH_NOARGS, task_forked_doc},
    {"task_ids", task_ids, METH_O, task_ids_doc},
    {"task_round", task_round, METH_NOARGS, task_round_doc},
    {"task_select", task_select, METH_VARARGS, task_select_doc},
    {"task_start", task_start, METH_O, task_start_doc},
    {"task_stop", task_stop, METH_NOARGS, task_stop_doc},
    {"task_unwrap", task_unwrap, METH_O, task_unwrap_doc},
    {"task_wrap", task_wrap, METH_VARARGS, task_wrap_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_task_exec(PyObject *module)
{
    callback_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &callback_spec, NULL);
    coroutine_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &coroutine_spec, NULL);
    if (callback_type == NULL || coroutine_type == NULL)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
