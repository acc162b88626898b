/* What runs per call of a Python function, while functions are traced: the kernel's function and function_graph events.
 *
 *   3.12 and newer   sys.monitoring calls `function_enter` and `function_leave`, or what cannot answer DISABLE
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
 * - A call that is as most are meets three branches before its time is read: the address is one, this thread's stack is
 *   of now (`ready`), and it has room, or the call on it is the one that ends. All else is `enter_slowly`'s and
 *   `leave_slowly`'s.
 */

#include "cursor.h"

#include <pthread.h>
#include <stddef.h>
#include <structmember.h>

#if PY_VERSION_HEX < 0x030C0000
#define Py_BUILD_CORE
#include <internal/pycore_frame.h>
#undef Py_BUILD_CORE
#endif

#define IGNORED 1
#define SILENT 2
#define ADDRESS_MIN 3 /* of what is traced */
#define DEPTH_MAX 65536
#define ADDRESS_BITS 48
#define ADDRESS_END ((uint64_t)1 << ADDRESS_BITS)

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
    Call calls[]; /* the call at depth n (from 1) is calls[n]; calls[0] is nobody's: code and address are 0 */
} Stack;

static Stack no_stack; /* of a thread that has none yet: never ready */
static AIOTRACE_THREAD_LOCAL Stack *this_stack = &no_stack;
static pthread_key_t stack_key; /* frees a thread's stack */
static uint32_t generation = 1; /* of tracing, and of the time without: what a stack holds from before is stale */

static Stack *
grow(Stack *stack)
{
    int is_first = stack == &no_stack;
    uint32_t room = is_first ? 128 : 2 * stack->room;
    if (room > DEPTH_MAX)
        return NULL;
    Stack *grown = realloc(is_first ? NULL : stack, sizeof(Stack) + (room + 1) * sizeof(Call));
    if (grown == NULL)
        return NULL;
    if (is_first)
        memset(grown, 0, sizeof(Stack) + sizeof(Call));
    grown->room = room;
    this_stack = grown;
    pthread_setspecific(stack_key, grown);
    return grown;
}

static void
free_stack(void *stack)
{
    this_stack = &no_stack;
    free(stack);
}

static inline void
settle(Stack *stack)
{
    stack->ready = stack->silent || stack->beyond ? 0 : stack->generation;
}

/* The stack, if a call may be pushed; or NULL. */
static Stack *
prepare(uint64_t address)
{
    Stack *stack = this_stack;
    if (stack == &no_stack && (stack = grow(stack)) == NULL)
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
static Py_ssize_t plain_index = PY_SSIZE_T_MAX; /* the same, if the extra lies where `peek` looks */
static uint64_t choice;                         /* of functions: addresses found for another one are stale */
static PyObject *locate;                        /* code -> address, IGNORED or SILENT; NULL: nothing is traced */

/* What get_extra gives, without its checks, or 0. The struct is codeobject.c's own; `function_start` looks whether it is
 * so. */
static inline uint64_t
peek(PyObject *code)
{
    const struct {
        Py_ssize_t size;
        void *extras[];
    } *extra = ((PyCodeObject *)code)->co_extra;
    return extra == NULL || plain_index >= extra->size ? 0 : (uint64_t)(uintptr_t)extra->extras[plain_index];
}

/* The address that an extra holds. It is ADDRESS_END or more if none is known: of the present choice, that is, which
 * stands above it and is never 0. */
static inline uint64_t
address_in(uint64_t extra)
{
    return extra - (choice << ADDRESS_BITS);
}

static uint64_t
find_address(PyObject *code)
{
    void *extra = (void *)(uintptr_t)peek(code);
    if (extra == NULL && get_extra(code, extra_index, &extra) < 0)
        extra = NULL;
    if (address_in((uint64_t)(uintptr_t)extra) < ADDRESS_END)
        return address_in((uint64_t)(uintptr_t)extra);
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

static inline __attribute__((always_inline)) void
push(Stack *stack, PyObject *code, uint64_t address)
{
    uint64_t now = read_time(&stack->clock);
    uint32_t depth = stack->depth++; /* as the kernel counts: the outermost call's is 0 */
    Call *call = &stack->calls[depth];
    uint64_t caller = call->address;
    call[1] = (Call){code, address, now};
    if (likely(entry_kind.event != NULL))
        record_entry(now, address, depth);
    if (unlikely(call_kind.event != NULL))
        record_call(now, address, caller);
}

static inline __attribute__((always_inline)) void
pop(Stack *stack, uint32_t depth)
{
    stack->depth = depth - 1;
    if (likely(exit_kind.event != NULL)) {
        const Call *call = &stack->calls[depth];
        record_exit(read_time(&stack->clock), call->address, depth - 1, call->began);
    }
}

static __attribute__((noinline)) int
enter_slowly(PyObject *code)
{
    if (locate == NULL)
        return 1;
    uint64_t address = find_address(code);
    if (address == IGNORED)
        return 0;
    Stack *stack = prepare(address);
    if (stack != NULL)
        push(stack, code, address);
    return 1;
}

/* Returns 0 if the function is not traced. */
static inline __attribute__((always_inline)) int
enter(PyObject *code)
{
    Stack *stack = this_stack;
    uint64_t address = address_in(peek(code));
    if (unlikely(address - ADDRESS_MIN >= ADDRESS_END - ADDRESS_MIN || stack->ready != generation ||
                 stack->depth == stack->room))
        return enter_slowly(code);
    push(stack, code, address);
    return 1;
}

/* How deep a call of this code is that is not the last one; or 0, if none is to be told of. */
static uint32_t
find_call(Stack *stack, PyObject *code, uint64_t address)
{
    if (stack->generation != generation)
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
    while (depth && stack->calls[depth].code != code)
        depth--;
    return depth; /* 0: it was entered before tracing began */
}

static __attribute__((noinline)) int
leave_slowly(PyObject *code)
{
    if (locate == NULL)
        return 1;
    uint64_t address = find_address(code);
    if (address == IGNORED)
        return 0;
    Stack *stack = this_stack; /* not before: Python ran */
    uint32_t depth = find_call(stack, code, address);
    if (depth != 0)
        pop(stack, depth);
    return 1;
}

/* Returns 0 if the function is not traced. */
static inline __attribute__((always_inline)) int
leave(PyObject *code)
{
    Stack *stack = this_stack;
    uint32_t depth = stack->depth;
    if (unlikely(stack->ready != generation || stack->calls[depth].code != code))
        return leave_slowly(code);
    pop(stack, depth);
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

/* Find out with this code object whether an extra lies where `peek` looks for it. */
static int
look_at_extra(PyObject *code)
{
    static const uintptr_t mark = 0x5A5A;
    void *extra = NULL;
    if (set_extra(code, extra_index, (void *)mark) < 0)
        return -1;
    plain_index = extra_index;
    if (get_extra(code, extra_index, &extra) < 0 || (uintptr_t)extra != mark || peek(code) != mark)
        plain_index = PY_SSIZE_T_MAX;
    return set_extra(code, extra_index, NULL);
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
        if (look_at_extra(PyFunction_GET_CODE(finder)) < 0)
            return NULL;
    }
    has_tsc = tsc;
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
    generation++;
    Py_CLEAR(locate);
    set_kind(&call_kind, Py_None);
    set_kind(&entry_kind, Py_None);
    set_kind(&exit_kind, Py_None);
    Py_RETURN_NONE;
}

#if PY_VERSION_HEX >= 0x030C0000

static PyObject *disable; /* sys.monitoring.DISABLE: not to be called for this place again */

/* A callback of sys.monitoring. The interpreter calls it straight: a builtin function costs it 60 instructions more. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
} Hook;

static inline __attribute__((always_inline)) int
is_call(PyObject *const *args, size_t nargsf)
{
    return likely(PyVectorcall_NARGS(nargsf) > 0 && PyCode_Check(args[0]));
}

static PyObject *
call_enter(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf) && unlikely(!enter(args[0])))
        return Py_NewRef(disable);
    Py_RETURN_NONE;
}

static PyObject *
call_leave(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf) && unlikely(!leave(args[0])))
        return Py_NewRef(disable);
    Py_RETURN_NONE;
}

static PyObject *
call_throw(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf))
        enter(args[0]);
    Py_RETURN_NONE;
}

static PyObject *
call_unwind(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf))
        leave(args[0]);
    Py_RETURN_NONE;
}

static const struct {
    const char *name;
    vectorcallfunc call;
} hooks[] = {
    {"function_enter", call_enter},   /* a call begins */
    {"function_leave", call_leave},   /* it ends */
    {"function_throw", call_throw},   /* it begins with an exception: cannot be disabled */
    {"function_unwind", call_unwind}, /* it ends with one: cannot be disabled */
};

static void
hook_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef hook_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot hook_slots[] = {
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_dealloc, hook_dealloc},
    {Py_tp_members, hook_members},
    {0, NULL},
};

static PyType_Spec hook_spec = {
    "aiotrace._c.FunctionHook",
    sizeof(Hook),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    hook_slots,
};

static int
add_hooks(PyObject *module)
{
    PyTypeObject *type;
    if (aiotrace_add_type(module, &hook_spec, &type, "FunctionHook") < 0)
        return -1;
    int failed = 0;
    for (size_t i = 0; i < sizeof hooks / sizeof *hooks && !failed; i++) {
        Hook *hook = PyObject_New(Hook, type);
        if (hook != NULL)
            hook->call = hooks[i].call;
        failed = PyModule_AddObjectRef(module, hooks[i].name, (PyObject *)hook) < 0;
        Py_XDECREF(hook);
    }
    Py_DECREF(type);
    return failed ? -1 : 0;
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

static uint64_t hooked;

PyDoc_STRVAR(hooked_doc,
             "function_hooked()\n--\n\n"
             "How often the profile function was called so far: for functions that are not traced too, and those of C.");

static PyObject *
function_hooked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(hooked);
}

static int
profile(PyObject *Py_UNUSED(object), PyFrameObject *frame, int what, PyObject *Py_UNUSED(argument))
{
    hooked++;
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

static PyMethodDef functions[] = {
    {"function_start", function_start, METH_VARARGS, start_doc},
    {"function_stop", function_stop, METH_NOARGS, stop_doc},
#if PY_VERSION_HEX < 0x030C0000
    {"function_hooked", function_hooked, METH_NOARGS, hooked_doc},
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
#if PY_VERSION_HEX >= 0x030C0000
    if (find_disable() < 0 || add_hooks(module) < 0)
        return -1;
#endif
    return PyModule_AddFunctions(module, functions);
}
