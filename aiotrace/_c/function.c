/* What runs per call of a Python function, while functions are traced: the kernel's function and function_graph events.
 *
 *   3.12 and newer   sys.monitoring calls `function_enter` and `function_leave`
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
 *   are not traced, and SILENT for those in which nothing else is either: the writers' own, in the middle of which no
 *   event can be written.
 * - The interpreter calls no hook inside a hook, so what the slow way runs is not traced.
 */

#include "aiotrace.h"

#include <pthread.h>

#define IGNORED 1
#define SILENT 2
#define DEPTH_MAX 65536

#if PY_VERSION_HEX >= 0x030C0000
#define request_extra_index PyUnstable_Eval_RequestCodeExtraIndex
#define get_extra PyUnstable_Code_GetExtra
#define set_extra PyUnstable_Code_SetExtra
#else
#define request_extra_index _PyEval_RequestCodeExtraIndex
#define get_extra _PyCode_GetExtra
#define set_extra _PyCode_SetExtra
#endif

#ifdef __GLIBC__
#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL __thread
#endif

typedef struct {
    PyObject *code; /* borrowed: it runs */
    uint64_t address;
    uint64_t began; /* ns */
} Call;

typedef struct {
    uint32_t depth;
    uint32_t room;
    uint32_t beyond; /* calls that are too deep to be kept */
    uint32_t silent; /* SILENT functions that run */
    uint32_t generation;
    Call calls[];
} Stack;

static THREAD_LOCAL Stack *this_stack;
static pthread_key_t stack_key; /* frees a thread's stack */
static uint32_t generation;     /* of tracing: what a stack holds from before is stale */
static Py_ssize_t extra_index = -1;
static PyObject *locate;                                /* code -> address, IGNORED or SILENT */
static PyObject *call_event, *entry_event, *exit_event; /* NULL: not traced */

/* --- addresses ---------------------------------------------------------------------------------- */

static uint64_t
find_address(PyObject *code)
{
    PyObject *found = locate == NULL ? NULL : PyObject_CallOneArg(locate, code);
    uint64_t address = found == NULL ? IGNORED : PyLong_AsUnsignedLongLong(found);
    Py_XDECREF(found);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        address = IGNORED;
    }
    if (set_extra(code, extra_index, (void *)(uintptr_t)address) < 0)
        PyErr_Clear();
    return address;
}

static inline uint64_t
address_of(PyObject *code)
{
    void *extra = NULL;
    if (get_extra(code, extra_index, &extra) == 0 && extra != NULL)
        return (uint64_t)(uintptr_t)extra;
    return find_address(code);
}

/* --- the stack of a thread ---------------------------------------------------------------------- */

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

static inline Stack *
current_stack(void)
{
    Stack *stack = this_stack;
    if (stack == NULL && (stack = grow(NULL)) == NULL)
        return NULL;
    if (stack->generation != generation) {
        stack->generation = generation;
        stack->depth = stack->beyond = stack->silent = 0;
    }
    return stack;
}

/* --- records ------------------------------------------------------------------------------------ */

/* The slow way: the event is called with its fields as objects. */
static void
call_slowly(PyObject *event, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    PyObject *args = Py_VaBuildValue(format, values);
    va_end(values);
    PyObject *done = args == NULL ? NULL : PyObject_CallObject(event, args);
    if (done == NULL)
        PyErr_Clear();
    Py_XDECREF(done);
    Py_XDECREF(args);
}

static void
enter(PyObject *code)
{
    uint64_t address = address_of(code);
    if (address == IGNORED)
        return;
    Stack *stack = current_stack();
    if (stack == NULL)
        return;
    if (address == SILENT)
        stack->silent++;
    if (stack->silent)
        return;
    if (stack->depth == stack->room) {
        Stack *grown = stack->beyond ? NULL : grow(stack);
        if (grown == NULL) {
            stack->beyond++;
            return;
        }
        stack = grown;
    }
    uint64_t now = aiotrace_event_now();
    uint32_t depth = stack->depth++;
    uint64_t caller = depth ? stack->calls[depth - 1].address : 0;
    stack->calls[depth].code = code;
    stack->calls[depth].address = address;
    stack->calls[depth].began = now;
    if (entry_event != NULL) {
        struct __attribute__((packed)) {
            uint64_t func;
            int32_t depth;
        } fields = {address, (int32_t)depth};
        if (!aiotrace_event_at(entry_event, now, &fields))
            call_slowly(entry_event, "(Ki)", (unsigned long long)address, (int)depth);
    }
    if (call_event != NULL) {
        struct {
            uint64_t ip, parent_ip;
        } fields = {address, caller};
        if (!aiotrace_event_at(call_event, now, &fields))
            call_slowly(call_event, "(KK)", (unsigned long long)address, (unsigned long long)caller);
    }
}

/* What `leave` does of a code that is not the last one called: how deep its call is, or 0 if none is to be told of. */
static uint32_t
find_call(Stack *stack, PyObject *code)
{
    uint64_t address = address_of(code);
    if (address == IGNORED)
        return 0;
    if (stack->silent) {
        stack->silent -= address == SILENT;
        return 0;
    }
    if (stack->beyond) {
        stack->beyond--;
        return 0;
    }
    uint32_t depth = stack->depth;
    while (depth && stack->calls[depth - 1].code != code)
        depth--;
    return depth; /* 0: it was entered before tracing began */
}

static void
leave(PyObject *code)
{
    Stack *stack = this_stack;
    if (stack == NULL || stack->generation != generation)
        return;
    uint32_t depth = stack->depth;
    if (stack->silent || stack->beyond || depth == 0 || stack->calls[depth - 1].code != code) {
        depth = find_call(stack, code);
        if (depth == 0)
            return;
    }
    stack->depth = --depth;
    if (exit_event == NULL)
        return;
    uint64_t address = stack->calls[depth].address;
    struct {
        uint64_t func;
        int32_t depth;
        uint32_t overrun;
        uint64_t calltime, rettime;
    } fields = {address, (int32_t)depth, 0, stack->calls[depth].began, aiotrace_event_now()};
    if (!aiotrace_event_at(exit_event, fields.rettime, &fields))
        call_slowly(exit_event, "(KiIKK)", (unsigned long long)address, (int)depth, 0u,
                    (unsigned long long)fields.calltime, (unsigned long long)fields.rettime);
}

/* --- hooks -------------------------------------------------------------------------------------- */

PyDoc_STRVAR(start_doc,
             "function_start(locate, call, entry, exit)\n--\n\n"
             "Say which events are recorded (None: not), and who gives a code object its address (or IGNORED, SILENT).");

static PyObject *
function_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *finder, *events[3];
    PyObject **places[3] = {&call_event, &entry_event, &exit_event};
    if (!PyArg_ParseTuple(args, "OOOO:function_start", &finder, &events[0], &events[1], &events[2]))
        return NULL;
    for (int i = 0; i < 3; i++) {
        if (events[i] != Py_None && !aiotrace_event_check(events[i])) {
            PyErr_SetString(PyExc_TypeError, "an event, or None");
            return NULL;
        }
    }
    if (extra_index < 0 && (extra_index = request_extra_index(NULL)) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "all places of co_extra are taken");
        return NULL;
    }
    if (locate == NULL)
        generation++;
    Py_INCREF(finder);
    Py_XSETREF(locate, finder);
    for (int i = 0; i < 3; i++) {
        PyObject *event = events[i] == Py_None ? NULL : events[i];
        Py_XINCREF(event);
        Py_XSETREF(*places[i], event);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(stop_doc, "function_stop()\n--\n\nRecord no more.");

static PyObject *
function_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(call_event);
    Py_CLEAR(entry_event);
    Py_CLEAR(exit_event);
    Py_CLEAR(locate);
    Py_RETURN_NONE;
}

#if PY_VERSION_HEX >= 0x030C0000

static PyObject *
function_enter(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (locate != NULL && nargs > 0 && PyCode_Check(args[0]))
        enter(args[0]);
    Py_RETURN_NONE;
}

static PyObject *
function_leave(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (locate != NULL && nargs > 0 && PyCode_Check(args[0]))
        leave(args[0]);
    Py_RETURN_NONE;
}

#else

static int
profile(PyObject *Py_UNUSED(object), PyFrameObject *frame, int what, PyObject *Py_UNUSED(argument))
{
    if (what != PyTrace_CALL && what != PyTrace_RETURN)
        return 0;
    if (locate == NULL)
        return 0;
    PyCodeObject *code = PyFrame_GetCode(frame);
    (what == PyTrace_CALL ? enter : leave)((PyObject *)code);
    Py_DECREF(code);
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
#if PY_VERSION_HEX >= 0x030C0000
    {"function_enter", (PyCFunction)(void (*)(void))function_enter, METH_FASTCALL, "For sys.monitoring: a call begins."},
    {"function_leave", (PyCFunction)(void (*)(void))function_leave, METH_FASTCALL, "For sys.monitoring: it ends."},
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
    return PyModule_AddFunctions(module, functions);
}
