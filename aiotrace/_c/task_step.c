/* What the hooks call: a task is made ready, a step of it begins and ends; its cancellation; a first step at once.
 *
 *     made_ready -> begin_step -> (it runs) -> end_step: task:step, and task:done if that was its end
 */
#include "task.h"

THREAD_LOCAL int is_preset;

/* --- cancellation -------------------------------------------------------------------------------------- */

PyObject *zero;

long
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

/* --- steps ------------------------------------------------------------------------------------------------- */

/* What task:step holds; the order and the padding of _tracers/task.py's definition. */
typedef struct {
    uint64_t ready_ns, duration_ns, awaited;
    int32_t waker;
} __attribute__((packed)) StepRecord;

/* The task that a callback is a step or a wake-up of, borrowed; NULL if it is none. */
PyObject *
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
void
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

void
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
void
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

PyObject *
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

void
tell_done(Step *step, int is_cancelled, PyObject *error)
{
    Name exception = error == NULL || is_cancelled ? name_nothing : find_name((PyObject *)Py_TYPE(error), 0);
    tell_end(step->known->id, is_cancelled ? &name_cancelled : error != NULL ? &name_raised : &name_returned, &exception);
}

void
record_step(Step *step, const Name *awaited)
{
    uint64_t now = now_ns();
    StepRecord record = {step->ready.ns, now > step->began ? now - step->began : 0, awaited->key, step->ready.waker};
    if (unlikely(!aiotrace_event_numbers(events[STEP], now, &record)))
        EMIT(STEP, PyLong_FromUnsignedLongLong(record.ready_ns), PyLong_FromUnsignedLongLong(record.duration_ns),
             text_of(awaited), PyLong_FromLong(record.waker));
}

void
leave(Step *step)
{
    aiotrace_set_task(step->previous);
    release(step->known);
    Py_DECREF(step->task);
}

/* The end of a step of an asyncio task. */
void
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

static PyMethodDef functions[] = {
    {"task_make", (PyCFunction)(void (*)(void))task_make, METH_FASTCALL | METH_KEYWORDS, task_make_doc},
    {NULL, NULL, 0, NULL},
};

int
step_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
