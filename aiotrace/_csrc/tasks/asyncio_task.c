/* The insides of asyncio's tasks: the object that traces a task is stored in the task, in place of
 * its coroutine.
 *
 *     a task of _asyncio           the coroutine is at an offset, found by searching a sample task for its coroutine
 *     _PyTask and its subclasses   the coroutine is the attribute _coro
 *
 * Why in the task: a step must find its state without a look-up, the state must go when the task
 * goes, and asyncio itself sends to whatever is stored there, so it needs no hook per step. A
 * program must not see it: while tracing is on, the functions that read that place for a program
 * (get_coro, _coro) are replaced by ones that return the coroutine. `cancel` is replaced too: it
 * records who requests the cancellation.
 *
 * Why in the descriptors (PyMethodDef, PyGetSetDef): _asyncio.Task is an immutable type, whose
 * attributes cannot be assigned; and a program, or C code of a library, may hold the descriptors,
 * which stay the same objects. Each is replaced only if it has the expected type and flags;
 * otherwise the tracer refuses to start.
 */
#include "tasks/tasks.h"

HOT_DATA Py_ssize_t aiotrace_coroutine_offset, aiotrace_step_offset;
HOT_DATA PyTypeObject *aiotrace_step_type;
static PyCFunction wakeup;          /* what C tasks give to futures */
static PyObject *python_step, *python_wakeup; /* the functions of _PyTask */
static PyObject *coro_name;

/* A C function of a type's, replaced. */
typedef struct {
    const char *name;
    int flags; /* of a method; -1: it is an attribute */
    void *replacement;
    void **place; /* NULL: it was not looked for yet */
    void *original;
} Replaced;

static PyObject *own_cancel(PyObject *task, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords);
static PyObject *own_get_coro(PyObject *task, PyObject *ignored);
static PyObject *own_coro(PyObject *task, void *closure);

enum { CANCEL_METHOD, GET_CORO_METHOD, CORO_ATTRIBUTE, REPLACED };
static Replaced replaced[REPLACED] = {
    {.name = "cancel", .flags = METH_FASTCALL | METH_KEYWORDS, .replacement = (void *)own_cancel},
    {.name = "get_coro", .flags = METH_NOARGS, .replacement = (void *)own_get_coro},
    {.name = "_coro", .flags = -1, .replacement = (void *)own_coro},
};

/* --- finding the coroutine ----------------------------------------------------------------------------------- */

/* Where in an object there is a pointer to another; 0: nowhere, or in more than one place. */
static Py_ssize_t
find_pointer(PyObject *object, PyObject *held)
{
    Py_ssize_t found = 0;
    for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof(void *) <= Py_TYPE(object)->tp_basicsize;
         at += sizeof(void *)) {
        if (*(PyObject **)((char *)object + at) == held) {
            if (found)
                return 0;
            found = at;
        }
    }
    return found;
}

/* The coroutine of a task, or the object that replaces it: borrowed, NULL without an exception. */
static inline PyObject *
coroutine_of(PyObject *task)
{
    if (likely(is_c_task(task)))
        return *coroutine_place(task);
    PyObject *coroutine = PyObject_GetAttr(task, coro_name);
    if (coroutine == NULL)
        PyErr_Clear();
    else
        Py_DECREF(coroutine); /* the task holds it */
    return coroutine;
}

HOT static void
set_coroutine(PyObject *task, PyObject *coroutine)
{
    if (likely(is_c_task(task))) {
        Py_SETREF(*coroutine_place(task), Py_NewRef(coroutine));
    }
    else if (PyObject_SetAttr(task, coro_name, coroutine) < 0) {
        PyErr_Clear();
    }
}

/* The state of a task, borrowed; NULL: it is not traced. */
TracedTask *
aiotrace_find_task(PyObject *task)
{
    PyObject *coroutine = coroutine_of(task);
    if (coroutine == NULL || Py_TYPE(coroutine) != aiotrace_coroutine_type || ((TracedTask *)coroutine)->next == NULL)
        return NULL;
    return (TracedTask *)coroutine;
}

/* Register a task. `coroutine`: the one that it ran, if it has none any more. A new reference, or
 * NULL. */
HOT static TracedTask *
register_asyncio_task(PyObject *task, PyObject *coroutine, int is_new)
{
    PyObject *own = Py_XNewRef(coroutine_of(task));
    TracedTask *traced = NULL;
    if (own == NULL)
        own = Py_XNewRef(coroutine);
    if (own != NULL && Py_TYPE(own) != aiotrace_coroutine_type)
        traced = aiotrace_register_task(task, own, ON_ASYNCIO, is_new);
    if (traced != NULL && coroutine_of(task) == own) /* still */
        set_coroutine(task, (PyObject *)traced);
    Py_XDECREF(own);
    return traced;
}

/* Give a task its coroutine back. */
HOT void
aiotrace_unwrap_task(TracedTask *traced)
{
    PyObject *task = referent(traced->ref);
    if (task == NULL)
        return;
    Py_INCREF(task);
    if (coroutine_of(task) == (PyObject *)traced)
        set_coroutine(task, traced->inner);
    Py_DECREF(task);
}

/* --- callbacks ----------------------------------------------------------------------------------------------- */

/* The task that a callback is a step or a wake-up of, borrowed; NULL if it is neither. */
static inline PyObject *
task_of(PyObject *callback, int *is_step)
{
    PyTypeObject *type = Py_TYPE(callback);
    *is_step = 0;
    if (type == aiotrace_step_type) {
        *is_step = 1;
        return *(PyObject **)((char *)callback + aiotrace_step_offset);
    }
    if (type == &PyCFunction_Type)
        return wakeup != NULL && PyCFunction_GET_FUNCTION(callback) == wakeup ? PyCFunction_GET_SELF(callback) : NULL;
    if (type == &PyMethod_Type) {
        PyObject *function = PyMethod_GET_FUNCTION(callback);
        *is_step = function == python_step;
        if (*is_step || function == python_wakeup)
            return PyMethod_GET_SELF(callback);
    }
    return NULL;
}

HOT static __attribute__((noinline)) void
examine_callback(PyObject *callback, PyObject *loop)
{
    int is_step;
    PyObject *task = task_of(callback, &is_step);
    if (task == NULL)
        return;
    TracedTask *traced = aiotrace_find_task(task);
    if (likely(traced != NULL)) {
        made_ready(traced, loop);
        return;
    }
    if ((traced = register_asyncio_task(task, NULL, is_step)) == NULL)
        return;
    if (is_step)
        aiotrace_emit_spawn(traced, task);
    int32_t here = aiotrace_task;
    if (unlikely(here == traced->id) && !aiotrace_field_is_true(&aiotrace_reader_suspended, traced->inner,
                                                                PyCoro_CheckExact(traced->inner)))
        set_task(traced->parent); /* a factory did not run it at once */
    made_ready(traced, loop);
    set_task(here);
    Py_DECREF(traced);
}

/* A callback was scheduled in a loop: if it is a step of a task, the task is ready, and new if it
 * is not registered. */
HOT void
aiotrace_callback_scheduled(PyObject *callback, PyObject *loop)
{
    TracedTask *traced = traced_by_step(callback);
    if (likely(traced != NULL))
        made_ready(traced, loop);
    else
        examine_callback(callback, loop);
}

/* Whether a callback is a step of a task that is known. */
int
aiotrace_is_traced_step(PyObject *callback)
{
    int is_step;
    PyObject *task = task_of(callback, &is_step);
    return task != NULL && aiotrace_find_task(task) != NULL;
}

/* --- what a program calls ------------------------------------------------------------------------------------ */

static PyObject *
unwrapped(PyObject *coroutine)
{
    if (coroutine == NULL || Py_TYPE(coroutine) != aiotrace_coroutine_type)
        return coroutine;
    PyObject *inner = Py_NewRef(((TracedTask *)coroutine)->inner);
    Py_DECREF(coroutine);
    return inner;
}

static PyObject *
own_get_coro(PyObject *task, PyObject *ignored)
{
    return unwrapped(((PyCFunction)replaced[GET_CORO_METHOD].original)(task, ignored));
}

static PyObject *
own_coro(PyObject *task, void *closure)
{
    return unwrapped(((getter)replaced[CORO_ATTRIBUTE].original)(task, closure));
}

PyObject *aiotrace_cancel_watch; /* (task, id, by, site, scope): called when a cancellation is requested; or NULL */

/* `scope`: of trio's, that is cancelled; NULL: the task itself is. */
void
aiotrace_call_cancel_watch(const TracedTask *traced, PyObject *task, PyObject *scope)
{
    Name site = aiotrace_find_site();
    PyObject *text = aiotrace_text_of(&site);
    PyObject *watch = Py_NewRef(aiotrace_cancel_watch);
    PyObject *result = PyObject_CallFunction(watch, "OiiOO", task, (int)traced->id, (int)aiotrace_task, text,
                                             scope != NULL ? scope : Py_None);
    if (result == NULL)
        PyErr_WriteUnraisable(watch);
    Py_XDECREF(result);
    Py_DECREF(watch);
    Py_DECREF(text);
}

/* What runs here asks for the cancellation of a task. `message`: borrowed, or NULL. */
static void
note_cancel(PyObject *task, PyObject *message)
{
    TracedTask *traced = aiotrace_find_task(task);
    if (traced == NULL || traced->state != TRACES || aiotrace_field_is_true(&aiotrace_reader_done, task,
                                                                            is_c_task(task)))
        return;
    traced->cancels++;
    if (is_off(CANCEL))
        return;
    int32_t id = traced->id;
    Name site = aiotrace_find_site();
    PyObject *text = message == NULL || message == Py_None ? PyUnicode_FromString("") : PyObject_Str(message);
    if (text == NULL) {
        PyErr_Clear();
        text = PyUnicode_FromString("?");
    }
    EMIT(CANCEL, PyLong_FromLong(id), PyLong_FromLong(aiotrace_task), aiotrace_text_of(&site), text);
}

/* What runs here has asked for it: the request stands. */
static void
watch_cancel(PyObject *task)
{
    TracedTask *traced = aiotrace_find_task(task);
    if (traced != NULL && traced->state == TRACES)
        aiotrace_call_cancel_watch(traced, task, NULL);
}

static PyObject *
own_cancel(PyObject *task, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Py_ssize_t all = nargs + (keywords != NULL ? PyTuple_GET_SIZE(keywords) : 0);
    note_cancel(task, all == 1 ? args[0] : NULL);
    PyObject *result =
        ((_PyCFunctionFastWithKeywords)replaced[CANCEL_METHOD].original)(task, args, nargs, keywords);
    if (unlikely(aiotrace_cancel_watch != NULL) && result == Py_True)
        watch_cancel(task);
    return result;
}

/* Where a type's descriptor has its C function; NULL: it is not as we know it. */
static void **
find_function(PyTypeObject *type, const Replaced *wanted)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)type, wanted->name);
    void **place = NULL;
    if (found == NULL)
        PyErr_Clear();
    else if (wanted->flags < 0 && Py_TYPE(found) == &PyGetSetDescr_Type)
        place = (void **)&((PyGetSetDescrObject *)found)->d_getset->get;
    else if (wanted->flags >= 0 && Py_TYPE(found) == &PyMethodDescr_Type &&
             ((PyMethodDescrObject *)found)->d_method->ml_flags == wanted->flags)
        place = (void **)&((PyMethodDescrObject *)found)->d_method->ml_meth;
    Py_XDECREF(found); /* the type holds it */
    return place;
}

/* --- in and out ---------------------------------------------------------------------------------------------- */

/* Replace the functions of the type of C tasks. -1 with ValueError if they are not as expected. */
static int
replace_functions(PyObject *step, PyObject *task, PyObject *coroutine)
{
    if (aiotrace_coroutine_offset == 0)
        aiotrace_coroutine_offset = find_pointer(task, coroutine);
    if (aiotrace_step_offset == 0)
        aiotrace_step_offset = find_pointer(step, task);
    if (aiotrace_coroutine_offset == 0 || aiotrace_step_offset == 0)
        goto unknown;
    for (int i = 0; i < REPLACED; i++) {
        if (replaced[i].place == NULL) {
            void **place = find_function(aiotrace_task_type, &replaced[i]);
            if (place == NULL)
                goto unknown;
            replaced[i].place = place;
            replaced[i].original = *place;
        }
    }
    for (int i = 0; i < REPLACED; i++)
        *replaced[i].place = replaced[i].replacement;
    aiotrace_step_type = Py_TYPE(step);
    return 0;
unknown:
    PyErr_Format(PyExc_ValueError, "%R has an unexpected layout", aiotrace_task_type);
    return -1;
}

/* `parts`: see _tracers/task.py. -1 with an exception. */
int
aiotrace_install_asyncio(PyObject *parts)
{
    PyObject *step, *woken, *task, *coroutine;
    if (!PyArg_ParseTuple(PyDict_GetItemString(parts, "sample"), "OOOO", &step, &woken, &task, &coroutine))
        return -1;
    Py_XSETREF(python_step, Py_NewRef(PyDict_GetItemString(parts, "python_step")));
    Py_XSETREF(python_wakeup, Py_NewRef(PyDict_GetItemString(parts, "python_wakeup")));
    if (coro_name == NULL && (coro_name = PyUnicode_InternFromString("_coro")) == NULL)
        return -1;
    if (aiotrace_task_type == NULL)
        return 0;
    wakeup = Py_TYPE(woken) == &PyCFunction_Type ? PyCFunction_GET_FUNCTION(woken) : NULL;
    return replace_functions(step, task, coroutine);
}

/* Restore the functions, except those that something else has replaced in between. */
void
aiotrace_uninstall_asyncio(void)
{
    for (int i = 0; i < REPLACED; i++)
        if (replaced[i].place != NULL && *replaced[i].place == replaced[i].replacement)
            *replaced[i].place = replaced[i].original;
}

/* --- functions of the module --------------------------------------------------------------------------------- */

PyDoc_STRVAR(task_unwrap_doc, "task_unwrap(coroutine)\n--\n\nThe coroutine that a Coroutine replaces, or the argument itself.");

static PyObject *
task_unwrap(PyObject *Py_UNUSED(module), PyObject *coroutine)
{
    return unwrapped(Py_NewRef(coroutine));
}

PyDoc_STRVAR(task_asked_doc,
             "task_asked(task, message)\n--\n\nWhat runs here requests the cancellation of a task of asyncio's.");

static PyObject *
task_asked(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task, *message;
    if (!PyArg_ParseTuple(args, "OO:task_asked", &task, &message))
        return NULL;
    note_cancel(task, message);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_was_asked_doc,
             "task_was_asked(task)\n--\n\nWhat runs here has requested the cancellation of a task of asyncio's.");

static PyObject *
task_was_asked(PyObject *Py_UNUSED(module), PyObject *task)
{
    if (aiotrace_cancel_watch != NULL)
        watch_cancel(task);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_watch_doc,
             "task_watch(watch)\n--\n\n"
             "Call this with (task, id, by, site, scope) when the cancellation of a task is requested; None: nothing.");

static PyObject *
task_watch(PyObject *Py_UNUSED(module), PyObject *watch)
{
    Py_XSETREF(aiotrace_cancel_watch, watch == Py_None ? NULL : Py_NewRef(watch));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_know_doc, "task_know(task)\n--\n\nRegister a task that existed before, and record that it is alive.");

static PyObject *
task_know(PyObject *Py_UNUSED(module), PyObject *task)
{
    TracedTask *traced = aiotrace_find_task(task) == NULL ? register_asyncio_task(task, NULL, 0) : NULL;
    if (traced != NULL) {
        traced->cancels = (int)aiotrace_count_cancels(task);
        aiotrace_emit_alive(traced);
        Py_DECREF(traced);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_make_doc,
             "task_make(factory, loop, coroutine, /, **keywords)\n--\n\n"
             "Call a task factory. A task that runs at once does so under an id of its own, and its step is recorded.");

/* Whether a task has run already. */
static int
ran_at_once(PyObject *task, PyObject *coroutine)
{
    return aiotrace_field_is_true(&aiotrace_reader_done, task, 1) ||
           (PyCoro_CheckExact(coroutine) && aiotrace_field_is_true(&aiotrace_reader_suspended, coroutine, 1));
}

/* The end of a first step that ran inside of the factory. */
static void
end_first_step(TracedTask *traced, PyObject *task, uint64_t began)
{
    Step step;
    Outcome outcome = {NULL, NULL, 0};
    PyObject *held = NULL, *name = traced->name; /* some are given their name after that step */
    uint64_t ready_ns = traced->ready_ns;        /* it may be ready again */
    int32_t waker = traced->waker, is_named = traced->is_named;
    traced->name = NULL;
    traced->is_named = 1;
    aiotrace_begin_step(&step, traced);
    step.began = began;
    step.ready_ns = 0;
    step.waker = 0;
    traced->ready_ns = ready_ns;
    traced->waker = waker;
    traced->name = name;
    traced->is_named = (char)is_named;
    if (!aiotrace_field_is_true(&aiotrace_reader_done, task, 1))
        outcome.yielded = held = read_field(&aiotrace_reader_waiter, task, 1);
    else if (!(outcome.is_cancelled = (char)aiotrace_field_is_true(&aiotrace_reader_cancelled, task, 1)))
        held = read_field(&aiotrace_reader_exception, task, 1);
    if (outcome.yielded == NULL && held != NULL && held != Py_None)
        outcome.error = held;
    aiotrace_end_step(&step, &outcome);
    Py_XDECREF(held);
}

static const char unnamed[COMM_SIZE] = "<...>"; /* as the kernel writes it: unknown before the task is made */

/* A factory has returned: the task that it made has run at once, or will; NULL: it failed. */
static void
switch_from_making(Switch *made, int32_t id, PyObject *task, PyObject *coroutine)
{
    int state = task == NULL ? ENDED : RUNS_ON;
    if (task != NULL && is_c_task(task) && ran_at_once(task, coroutine)) {
        PyObject *awaited = read_field(&aiotrace_reader_waiter, task, 1);
        state = aiotrace_field_is_true(&aiotrace_reader_done, task, 1) ? ENDED : awaited == Py_None ? RUNS_ON : WAITS;
        Py_XDECREF(awaited);
    }
    aiotrace_switch_out(made, id, unnamed, state, aiotrace_read_tsc());
}

static PyObject *
task_make(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "task_make takes a factory, a loop and a coroutine");
        return NULL;
    }
    if (!aiotrace_traces_tasks || !aiotrace_is_recording())
        return PyObject_Vectorcall(args[0], args + 1, 2, keywords);
    Making here = {args[2], aiotrace_new_id(), aiotrace_task, NULL, aiotrace_making};
    uint64_t began = aiotrace_read_tsc();
    aiotrace_making = &here;
    set_task(here.id);
    Switch made = {.is_made = 0};
    if (unlikely(aiotrace_emits_sched_events))
        aiotrace_switch_in(&made, here.parent, here.id, unnamed, began);
    PyObject *task = PyObject_Vectorcall(args[0], args + 1, 2, keywords);
    if (unlikely(made.is_made))
        switch_from_making(&made, here.id, task, args[2]);
    set_task(here.parent);
    if (task != NULL && is_c_task(task) && ran_at_once(task, args[2])) {
        here.task = task;
        TracedTask *traced = (TracedTask *)Py_XNewRef(aiotrace_find_task(task));
        if (traced == NULL && (traced = register_asyncio_task(task, args[2], 1)) != NULL)
            aiotrace_emit_spawn(traced, task);
        if (traced != NULL) {
            end_first_step(traced, task, began);
            Py_DECREF(traced);
        }
    }
    aiotrace_making = here.outer;
    return task;
}

static PyMethodDef functions[] = {
    {"task_asked", task_asked, METH_VARARGS, task_asked_doc},
    {"task_was_asked", task_was_asked, METH_O, task_was_asked_doc},
    {"task_watch", task_watch, METH_O, task_watch_doc},
    {"task_know", task_know, METH_O, task_know_doc},
    {"task_make", (PyCFunction)(void (*)(void))task_make, METH_FASTCALL | METH_KEYWORDS, task_make_doc},
    {"task_unwrap", task_unwrap, METH_O, task_unwrap_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_asyncio_task_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
