/* What runs per call of a Python function, while functions are traced: the kernel's function and function_graph events.
 *
 *   3.12 and newer   sys.monitoring calls `function_enter` and `function_leave`, or what does not know DISABLE
 *   3.11             a C profile function in every thread
 *
 *                 enter                                     leave
 *   code object --extra--> address --push--> [call, began]  --pop--> func, calltime, rettime
 *
 * Laws:
 * - A coroutine that is suspended has left, and enters when it goes on: so calls nest in each thread.
 * - What does not nest all the same (tracing began in the middle of calls, or an interpreter that told of no end) is
 *   left out, and what stands above it on the stack is dropped: a depth is never wrong for more than one call.
 * - An address is kept in the code object (`co_extra`): there is no look-up per call. IGNORED stands for functions that
 *   are not traced, and sys.monitoring is told not to call for them again; SILENT for those in which nothing else is
 *   traced either: the writers' own, in the middle of which no event can be written.
 * - The interpreter calls no hook inside a hook, so what the slow way runs is not traced.
 * - A record goes straight to its place. Whatever is not as it mostly is (a page that is full, a filter, several
 *   recordings, a long pause) is left to the event.
 */

#include "cursor.h"

#include <pthread.h>

#if PY_VERSION_HEX < 0x030C0000
#define Py_BUILD_CORE
#include <internal/pycore_frame.h>
#undef Py_BUILD_CORE
#endif

#define IGNORED 1
#define SILENT 2
#define DEPTH_MAX 65536
#define ADDRESS_BITS 48

#if PY_VERSION_HEX >= 0x030C0000
#define request_extra_index PyUnstable_Eval_RequestCodeExtraIndex
#define get_extra PyUnstable_Code_GetExtra
#define set_extra PyUnstable_Code_SetExtra
#else
#define request_extra_index _PyEval_RequestCodeExtraIndex
#define get_extra _PyCode_GetExtra
#define set_extra _PyCode_SetExtra
#endif

/* --- the time -------------------------------------------------------------------------------------- */

/* Reading CLOCK_MONOTONIC twice would be most of what a call costs. Where the kernel itself makes it from the TSC, it is
 * read each WINDOW, and in between the TSC goes on from there at the rate of the windows before:
 *
 *     mono_base |---------------|---------------|         now = mono_base + ticks * rate, never less than before
 *               ^ read           ^ read, new rate
 */
#define WINDOW (1u << 21) /* ticks: about a millisecond */
#define APART_MAX 1024    /* ticks that one look at both clocks takes: else somebody came between */

typedef struct {
    uint64_t tick;
    uint64_t mono;      /* ns, at `tick` */
    uint64_t mono_base; /* the same, but not less than what was told before */
    uint64_t rate;      /* ns a tick, in 2**-32; 0: not known yet */
} Clock;

static int has_tsc; /* the kernel makes CLOCK_MONOTONIC from it: so it is constant, and the same on all processors */

#if HAVE_TSC

static inline uint64_t
scale(uint64_t ticks, uint64_t rate)
{
    return (uint64_t)(((unsigned __int128)ticks * rate) >> 32);
}

static __attribute__((noinline)) uint64_t
read_both(Clock *clock)
{
    uint64_t before = __rdtsc(), mono = monotonic_ns(), apart = __rdtsc() - before, tick = before + apart / 2;
    uint64_t ticks = tick - clock->tick;
    uint64_t told = clock->rate ? clock->mono_base + scale(ticks < WINDOW ? ticks : WINDOW, clock->rate) : 0;
    if (mono < told)
        mono = told;
    if (apart > APART_MAX || (clock->tick != 0 && ticks < WINDOW))
        return mono;
    /* After a pause of hours, or a counter that was set back, the rate is learnt anew. */
    int can_tell = clock->tick != 0 && ticks < (uint64_t)1 << 40 && mono > clock->mono;
    clock->rate = can_tell ? (uint64_t)(((unsigned __int128)(mono - clock->mono) << 32) / ticks) : 0;
    clock->tick = tick;
    clock->mono = clock->mono_base = mono;
    return mono;
}

#endif

static inline uint64_t
read_time(Clock *clock)
{
#if HAVE_TSC
    if (likely(has_tsc)) {
        uint64_t ticks = __rdtsc() - clock->tick;
        if (likely(ticks < WINDOW && clock->rate != 0))
            return clock->mono_base + scale(ticks, clock->rate);
        return read_both(clock);
    }
#endif
    (void)clock;
    return aiotrace_event_now();
}

/* --- the stack of a thread ------------------------------------------------------------------------- */

typedef struct {
    PyObject *code; /* borrowed: it runs */
    uint64_t address;
    uint64_t began; /* ns */
} Call;

typedef struct {
    uint32_t ready; /* `generation`, if nothing is but to push and pop; or 0 */
    uint32_t depth;
    uint32_t room;
    uint32_t beyond; /* calls that are too deep to be kept */
    uint32_t silent; /* SILENT functions that run */
    uint32_t generation;
    Clock clock;
    Call calls[];
} Stack;

static AIOTRACE_THREAD_LOCAL Stack *this_stack;
static pthread_key_t stack_key;     /* frees a thread's stack */
static uint32_t generation = 1;     /* of tracing: what a stack holds from before is stale */

static Stack *
grow(Stack *stack)
{
    uint32_t room = stack == NULL ? 128 : 2 * stack->room;
    if (room > DEPTH_MAX)
        return NULL;
    Stack *grown = realloc(stack, sizeof(Stack) + room * sizeof(Call));
    if (grown == NULL)
        return NULL;
    if (stack == NULL)
        memset(grown, 0, sizeof *grown);
    grown->room = room;
    this_stack = grown;
    pthread_setspecific(stack_key, grown);
    return grown;
}

static void
free_stack(void *stack)
{
    this_stack = NULL;
    free(stack);
}

static inline void
settle(Stack *stack)
{
    stack->ready = stack->silent || stack->beyond ? 0 : stack->generation;
}

/* The stack, if a call may be pushed; or NULL. */
static __attribute__((noinline)) Stack *
prepare(uint64_t address)
{
    Stack *stack = this_stack;
    if (stack == NULL && (stack = grow(NULL)) == NULL)
        return NULL;
    if (stack->generation != generation) {
        stack->generation = generation;
        stack->depth = stack->beyond = stack->silent = 0;
    }
    stack->silent += address == SILENT;
    if (!stack->silent && stack->depth == stack->room) {
        Stack *grown = stack->beyond ? NULL : grow(stack);
        if (grown == NULL)
            stack->beyond++;
        else
            stack = grown;
    }
    settle(stack);
    return stack->ready ? stack : NULL;
}

/* --- addresses ------------------------------------------------------------------------------------- */

static Py_ssize_t extra_index = -1;
static int is_extra_plain; /* it lies where `peek` looks */
static uint64_t choice;    /* of functions, above ADDRESS_BITS: an address that was found for another one is stale */
static PyObject *locate;   /* code -> address, IGNORED or SILENT; NULL: nothing is traced */

/* What get_extra gives, without its checks. The struct is codeobject.c's own; `function_start` looks whether it is so. */
static inline uint64_t
peek(PyObject *code)
{
    const struct {
        Py_ssize_t size;
        void *extras[];
    } *extra = ((PyCodeObject *)code)->co_extra;
    return extra == NULL || extra_index >= extra->size ? 0 : (uint64_t)(uintptr_t)extra->extras[extra_index];
}

static __attribute__((noinline)) uint64_t
find_address(PyObject *code)
{
    void *extra = NULL;
    if (!is_extra_plain && get_extra(code, extra_index, &extra) == 0 &&
        (uint64_t)(uintptr_t)extra >> ADDRESS_BITS == choice)
        return (uint64_t)(uintptr_t)extra & (((uint64_t)1 << ADDRESS_BITS) - 1);
    uint64_t chosen = choice; /* another thread may change both, while Python runs */
    PyObject *finder = locate;
    Py_INCREF(finder);
    PyObject *found = PyObject_CallOneArg(finder, code);
    Py_DECREF(finder);
    uint64_t address = found == NULL ? IGNORED : PyLong_AsUnsignedLongLong(found);
    Py_XDECREF(found);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        address = IGNORED;
    }
    if (set_extra(code, extra_index, (void *)(uintptr_t)(address | chosen << ADDRESS_BITS)) < 0)
        PyErr_Clear();
    return address;
}

static inline uint64_t
address_of(PyObject *code)
{
    if (likely(is_extra_plain)) {
        uint64_t extra = peek(code);
        if (likely(extra >> ADDRESS_BITS == choice))
            return extra & (((uint64_t)1 << ADDRESS_BITS) - 1);
    }
    return find_address(code);
}

/* --- records --------------------------------------------------------------------------------------- */

#define COMMON uint32_t header, id; int32_t pid
typedef struct __attribute__((packed, aligned(4))) {
    COMMON;
    uint64_t ip, parent_ip;
} CallRecord;
typedef struct __attribute__((packed, aligned(4))) {
    COMMON;
    uint64_t func;
    int32_t depth;
} EntryRecord;
typedef struct __attribute__((packed, aligned(4))) {
    COMMON;
    uint64_t func;
    int32_t depth;
    uint32_t overrun;
    uint64_t calltime, rettime;
} ExitRecord;

/* An event of ours. */
typedef struct {
    PyObject *event; /* NULL: it is not traced */
    const uint64_t *plain_epoch;
    uint32_t id;
} Kind;

static Kind call_kind, entry_kind, exit_kind;

/* Where a record of `size` bytes goes, its common part written, or NULL if that is not for here. The caller stores the
 * rest of it there at once (a record built elsewhere and copied waits for its own stores) and calls commit. */
static inline __attribute__((always_inline)) void *
begin(const Kind *kind, uint64_t now, uint32_t size, Cursor **writer)
{
    Lease *lease = aiotrace_lease;
    if (unlikely(lease == NULL || lease->epoch != aiotrace_epoch || *kind->plain_epoch != aiotrace_epoch))
        return NULL;
    Cursor *cursor = lease->only;
    if (unlikely(cursor == NULL))
        return NULL;
    uint64_t delta = now - cursor->last;
    if (unlikely(delta > DELTA_MAX || cursor->end + size > cursor->limit))
        return NULL;
    struct { COMMON; } *record = (void *)(cursor->page + cursor->end);
    record->header = (size - 4) >> 2 | (uint32_t)delta << 5;
    record->id = kind->id;
    record->pid = lease->pid;
    *writer = cursor;
    return record;
}

/* The slow way: the event is called with its fields as objects. */
static __attribute__((noinline)) void
call_slowly(PyObject *event, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    PyObject *args = Py_VaBuildValue(format, values);
    va_end(values);
    Py_INCREF(event); /* another thread may take it away */
    PyObject *done = args == NULL ? NULL : PyObject_CallObject(event, args);
    if (done == NULL)
        PyErr_Clear();
    Py_XDECREF(done);
    Py_XDECREF(args);
    Py_DECREF(event);
}

static inline void
record_call(uint64_t now, uint64_t address, uint64_t caller)
{
    Cursor *cursor;
    CallRecord *record = begin(&call_kind, now, sizeof *record, &cursor);
    if (likely(record != NULL)) {
        record->ip = address;
        record->parent_ip = caller;
        commit(cursor, now, cursor->end + sizeof *record);
        return;
    }
    CallRecord copy = {.ip = address, .parent_ip = caller};
    if (!aiotrace_event_at(call_kind.event, now, &copy.ip))
        call_slowly(call_kind.event, "(KK)", (unsigned long long)address, (unsigned long long)caller);
}

static inline void
record_entry(uint64_t now, uint64_t address, uint32_t depth)
{
    Cursor *cursor;
    EntryRecord *record = begin(&entry_kind, now, sizeof *record, &cursor);
    if (likely(record != NULL)) {
        record->func = address;
        record->depth = (int32_t)depth;
        commit(cursor, now, cursor->end + sizeof *record);
        return;
    }
    EntryRecord copy = {.func = address, .depth = (int32_t)depth};
    if (!aiotrace_event_at(entry_kind.event, now, &copy.func))
        call_slowly(entry_kind.event, "(Ki)", (unsigned long long)address, (int)depth);
}

static inline void
record_exit(uint64_t now, uint64_t address, uint32_t depth, uint64_t began)
{
    Cursor *cursor;
    ExitRecord *record = begin(&exit_kind, now, sizeof *record, &cursor);
    if (likely(record != NULL)) {
        record->func = address;
        record->depth = (int32_t)depth;
        record->overrun = 0;
        record->calltime = began;
        record->rettime = now;
        commit(cursor, now, cursor->end + sizeof *record);
        return;
    }
    ExitRecord copy = {.func = address, .depth = (int32_t)depth, .calltime = began, .rettime = now};
    if (!aiotrace_event_at(exit_kind.event, now, &copy.func))
        call_slowly(exit_kind.event, "(KiIKK)", (unsigned long long)address, (int)depth, 0u,
                    (unsigned long long)began, (unsigned long long)now);
}

/* --- calls ----------------------------------------------------------------------------------------- */

/* Returns 0 if the function is not traced. */
static inline int
enter(PyObject *code)
{
    uint64_t address = address_of(code);
    if (unlikely(address == IGNORED))
        return 0;
    Stack *stack = this_stack;
    if (unlikely(stack == NULL || stack->ready != generation || stack->depth == stack->room || address == SILENT)) {
        if ((stack = prepare(address)) == NULL)
            return 1;
    }
    uint64_t now = read_time(&stack->clock);
    uint32_t depth = stack->depth++;
    Call *call = &stack->calls[depth];
    uint64_t caller = depth ? call[-1].address : 0;
    *call = (Call){code, address, now};
    if (entry_kind.event != NULL)
        record_entry(now, address, depth);
    if (unlikely(call_kind.event != NULL))
        record_call(now, address, caller);
    return 1;
}

/* What `leave` does of a code that is not the last one called: how deep its call is, or 0 if none is to be told of. */
static __attribute__((noinline)) uint32_t
find_call(Stack *stack, PyObject *code, int *is_traced)
{
    uint64_t address = address_of(code);
    *is_traced = address != IGNORED;
    if (address == IGNORED || stack == NULL || stack->generation != generation)
        return 0;
    if (stack->silent) {
        stack->silent -= address == SILENT;
        settle(stack);
        return 0;
    }
    if (stack->beyond) {
        stack->beyond--;
        settle(stack);
        return 0;
    }
    uint32_t depth = stack->depth;
    while (depth && stack->calls[depth - 1].code != code)
        depth--;
    return depth; /* 0: it was entered before tracing began */
}

/* Returns 0 if the function is not traced. */
static inline int
leave(PyObject *code)
{
    Stack *stack = this_stack;
    uint32_t depth = stack == NULL ? 0 : stack->depth;
    if (unlikely(depth == 0 || stack->ready != generation || stack->calls[depth - 1].code != code)) {
        int is_traced;
        depth = find_call(stack, code, &is_traced);
        if (depth == 0)
            return is_traced;
    }
    stack->depth = --depth;
    if (exit_kind.event != NULL) {
        const Call *call = &stack->calls[depth];
        record_exit(read_time(&stack->clock), call->address, depth, call->began);
    }
    return 1;
}

/* --- hooks ----------------------------------------------------------------------------------------- */

static void
set_kind(Kind *kind, PyObject *event)
{
    PyObject *before = kind->event;
    if (event == Py_None) {
        kind->event = NULL;
    }
    else {
        Py_INCREF(event);
        *kind = (Kind){event, aiotrace_event_plain_epoch(event), (uint32_t)aiotrace_event_id(event)};
    }
    Py_XDECREF(before);
}

/* Whether the extra of a code object lies where `peek` looks for it. */
static int
look_at_extra(PyObject *code)
{
    static const uintptr_t mark = 0x5A5A;
    void *extra = NULL;
    if (set_extra(code, extra_index, (void *)mark) < 0)
        return -1;
    int is_plain = get_extra(code, extra_index, &extra) == 0 && (uintptr_t)extra == mark && peek(code) == mark;
    return set_extra(code, extra_index, NULL) < 0 ? -1 : is_plain;
}

PyDoc_STRVAR(start_doc,
             "function_start(locate, call, entry, exit, has_tsc)\n--\n\n"
             "Say which events are recorded (None: not), and who gives a code object its address (or IGNORED, SILENT):\n"
             "another function than before is asked for all of them again. has_tsc: whether the kernel makes\n"
             "CLOCK_MONOTONIC from the time stamp counter.");

static PyObject *
function_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *finder, *events[3];
    Kind *places[3] = {&call_kind, &entry_kind, &exit_kind};
    int tsc;
    if (!PyArg_ParseTuple(args, "O!OOOp:function_start", &PyFunction_Type, &finder, &events[0], &events[1], &events[2],
                          &tsc))
        return NULL;
    for (int i = 0; i < 3; i++) {
        if (events[i] != Py_None && !aiotrace_event_check(events[i])) {
            PyErr_SetString(PyExc_TypeError, "an event, or None");
            return NULL;
        }
    }
    if (extra_index < 0) {
        if ((extra_index = request_extra_index(NULL)) < 0) {
            PyErr_SetString(PyExc_RuntimeError, "all places of co_extra are taken");
            return NULL;
        }
        if ((is_extra_plain = look_at_extra(PyFunction_GET_CODE(finder))) < 0)
            return NULL;
    }
    has_tsc = tsc;
    if (locate == NULL)
        generation++;
    if (locate != finder)
        choice = choice % 0xFFFF + 1;
    Py_INCREF(finder);
    Py_XSETREF(locate, finder);
    for (int i = 0; i < 3; i++)
        set_kind(places[i], events[i]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(stop_doc, "function_stop()\n--\n\nRecord no more.");

static PyObject *
function_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(locate);
    set_kind(&call_kind, Py_None);
    set_kind(&entry_kind, Py_None);
    set_kind(&exit_kind, Py_None);
    Py_RETURN_NONE;
}

#if PY_VERSION_HEX >= 0x030C0000

static PyObject *disable; /* sys.monitoring.DISABLE: not to be called for this place again */

static inline __attribute__((always_inline)) PyObject *
run_hook(int (*hook)(PyObject *), PyObject *const *args, Py_ssize_t nargs, PyObject *if_ignored)
{
    PyObject *result = Py_None;
    if (likely(locate != NULL && nargs > 0 && PyCode_Check(args[0])) && unlikely(!hook(args[0])))
        result = if_ignored;
    Py_INCREF(result);
    return result;
}

static PyObject *
function_enter(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    return run_hook(enter, args, nargs, disable);
}

static PyObject *
function_leave(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    return run_hook(leave, args, nargs, disable);
}

static PyObject *
function_throw(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    return run_hook(enter, args, nargs, Py_None);
}

static PyObject *
function_unwind(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    return run_hook(leave, args, nargs, Py_None);
}

static int
find_disable(void)
{
    PyObject *monitoring = PySys_GetObject("monitoring"); /* borrowed */
    if (monitoring == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "sys.monitoring is missing");
        return -1;
    }
    Py_XSETREF(disable, PyObject_GetAttrString(monitoring, "DISABLE"));
    return disable == NULL ? -1 : 0;
}

#else

static int
find_disable(void)
{
    return 0;
}

static int
profile(PyObject *Py_UNUSED(object), PyFrameObject *frame, int what, PyObject *Py_UNUSED(argument))
{
    if (unlikely(locate == NULL))
        return 0;
    if (what == PyTrace_CALL)
        enter((PyObject *)frame->f_frame->f_code);
    else if (what == PyTrace_RETURN)
        leave((PyObject *)frame->f_frame->f_code);
    return 0;
}

PyDoc_STRVAR(profile_all_doc,
             "function_profile_all(on)\n--\n\n"
             "Put the profile function into every thread that has none, or take ours out again. Returns False, without\n"
             "effect, if the calling thread has another one.");

static PyObject *
function_profile_all(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int on = PyObject_IsTrue(argument);
    if (on < 0)
        return NULL;
    PyThreadState *here = PyThreadState_Get();
    if (on && here->c_profilefunc != NULL && here->c_profilefunc != profile)
        Py_RETURN_FALSE;
    for (PyThreadState *thread = PyInterpreterState_ThreadHead(PyInterpreterState_Get()); thread != NULL;
         thread = PyThreadState_Next(thread)) {
        if (thread->c_profilefunc == (on ? NULL : profile) && _PyEval_SetProfile(thread, on ? profile : NULL, NULL) < 0)
            return NULL;
    }
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(profile_thread_doc, "For threading.setprofile: puts the profile function into the thread that calls it.");

static PyObject *
function_profile_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    if (_PyEval_SetProfile(PyThreadState_Get(), locate == NULL ? NULL : profile, NULL) < 0)
        return NULL;
    Py_RETURN_NONE;
}

#endif

#define FAST(function) (PyCFunction)(void (*)(void))function

static PyMethodDef functions[] = {
    {"function_start", function_start, METH_VARARGS, start_doc},
    {"function_stop", function_stop, METH_NOARGS, stop_doc},
#if PY_VERSION_HEX >= 0x030C0000
    {"function_enter", FAST(function_enter), METH_FASTCALL, "For sys.monitoring: a call begins."},
    {"function_leave", FAST(function_leave), METH_FASTCALL, "For sys.monitoring: it ends."},
    {"function_throw", FAST(function_throw), METH_FASTCALL, "It begins with an exception: cannot be disabled."},
    {"function_unwind", FAST(function_unwind), METH_FASTCALL, "It ends with one: cannot be disabled."},
#else
    {"function_profile_all", function_profile_all, METH_O, profile_all_doc},
    {"function_profile_thread", function_profile_thread, METH_VARARGS, profile_thread_doc},
#endif
    {NULL, NULL, 0, NULL},
};

int
aiotrace_function_exec(PyObject *module)
{
    static int has_key;
    if (!has_key && pthread_key_create(&stack_key, free_stack) != 0) {
        PyErr_SetString(PyExc_OSError, "pthread_key_create");
        return -1;
    }
    has_key = 1;
    if (find_disable() < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
