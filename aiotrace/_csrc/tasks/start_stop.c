/* Tracing of tasks: what runs for each step. _tracers/task.py and the modules beside it install the
 * hooks.
 *
 *   asyncio   Handle      a subclass of events.Handle, in its place     a callback is made: a task is spawned, or ready
 *   uvloop    call_soon   replaces Loop.call_soon                       the same
 *   trio      create      replaces Task._create                         a task is spawned
 *
 *   all       Coroutine   replaces the task's coroutine, in the task    sent: a step begins ... ends
 *
 * A step is one record, written at its end: when and by whom it was made ready, how long it ran,
 * what it waits for now. While it runs, the records of its thread carry the task's id as their pid.
 *
 * Invariants:
 * - Nothing here raises into the program, and a pending exception of the program's is kept.
 * - The state of a traced task is its Coroutine object, which the task holds; it holds the task by
 *   a weak reference. So it is found without a search, is freed with its task, and keeps nothing
 *   alive.
 * - Any call into Python may switch threads and change the registry: its ring is changed in one
 *   stretch without such calls, and what is used across a call is held.
 * - Offsets in CPython's own tasks are taken from the descriptors that Python code uses, or found
 *   by searching for a value that is known to be there; never guessed.
 */

#include "tasks/tasks.h"

#include <limits.h>

static const char *const event_names[EVENTS] = {"spawn",  "name",      "ready",  "step",      "done",
                                                "cancel", "delivered", "caught", "swallowed", "alive"};

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

static const struct {
    Name *name;
    const char *text;
} fixed_names[] = {
    {&aiotrace_unknown_name, "?"},          {&aiotrace_name_yield, "yield"},         {&aiotrace_name_done, "done"},
    {&aiotrace_name_nothing, ""},           {&aiotrace_name_returned, "returned"},   {&aiotrace_name_raised, "raised"},
    {&aiotrace_name_cancelled, "cancelled"}, {&aiotrace_name_lost, "lost"},
};

PyDoc_STRVAR(task_start_doc,
             "task_start(parts)\n--\n\n"
             "Trace from now on what runs through the hooks. `parts`: events, functions and types, by name; see\n"
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
            PyErr_Format(PyExc_TypeError, "%s is not an event of the C module", event_names[i]);
            return NULL;
        }
        Py_XSETREF(aiotrace_task_events[i], Py_NewRef(event));
        aiotrace_task_kinds[i] = (Kind){0, 0, (uint32_t)aiotrace_event_id(event)};
    }
    if (take(&aiotrace_describe, parts, "describe") < 0 || take(&aiotrace_name_command, parts, "name_command") < 0 ||
        take(&aiotrace_find_line, parts, "find_line") < 0 || take(&aiotrace_find_inner, parts, "find_inner") < 0 ||
        take((PyObject **)&aiotrace_task_type, parts, "task_type") < 0 ||
        take(&aiotrace_current_tasks, parts, "current_tasks") < 0 ||
        take(&aiotrace_cancelled_error, parts, "cancelled_error") < 0 ||
        take(&aiotrace_trio_cancelled, parts, "trio_cancelled") < 0 ||
        take((PyObject **)&aiotrace_trio_error, parts, "trio_error") < 0)
        return NULL;
    FieldReader *of_task[] = {&aiotrace_reader_waiter, &aiotrace_reader_must_cancel, &aiotrace_reader_exception,
                              &aiotrace_reader_done, &aiotrace_reader_cancelled, &aiotrace_reader_cancelling,
                              &aiotrace_reader_name};
    for (size_t i = 0; i < sizeof of_task / sizeof *of_task; i++)
        if (aiotrace_prepare_reader(of_task[i], aiotrace_task_type) < 0)
            return NULL;
    FieldReader *of_coroutine[] = {&aiotrace_reader_code, &aiotrace_reader_suspended, &aiotrace_reader_frame};
    for (size_t i = 0; i < sizeof of_coroutine / sizeof *of_coroutine; i++)
        if (aiotrace_prepare_reader(of_coroutine[i], &PyCoro_Type) < 0)
            return NULL;
    if (aiotrace_prepare_reader(&aiotrace_reader_trio_name, NULL) < 0)
        return NULL;
    for (size_t i = 0; i < sizeof fixed_names / sizeof *fixed_names; i++)
        if (aiotrace_fill_name(fixed_names[i].name, fixed_names[i].text) < 0)
            return NULL;
    if (aiotrace_first_id != aiotrace_base_id())
        aiotrace_begin_ids(0);
    if (aiotrace_install_asyncio(parts) < 0)
        return NULL;
    aiotrace_begin_keyframes();
    aiotrace_traces_tasks = 1;
    Py_RETURN_NONE;
}

/* Forget all tasks. The coroutines of trio's tasks are restored in Python, or pass everything on. */
static void
forget_all(void)
{
    TracedTask *traced;
    while ((traced = aiotrace_first_traced_task()) != NULL) {
        Py_INCREF(traced);
        aiotrace_forget_task(traced);
        if (traced->runtime == ON_ASYNCIO)
            aiotrace_unwrap_task(traced);
        Py_DECREF(traced);
    }
}

PyDoc_STRVAR(task_round_doc, "task_round()\n--\n\nWrite a keyframe of all tasks now.");

static PyObject *
task_round(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    aiotrace_write_keyframe();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_forked_doc,
             "task_forked()\n--\n\nIn a forked child: its tasks are not the parent's, and its ids neither.");

static PyObject *
task_forked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    set_task(0);
    aiotrace_forget_pid_names();
    forget_all();
    aiotrace_begin_ids(0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_ids_doc, "task_ids(next)\n--\n\nContinue with the id of that number; for tests.");

static PyObject *
task_ids(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long next = PyLong_AsUnsignedLong(argument);
    if (next == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    aiotrace_begin_ids((uint32_t)next);
    return PyLong_FromLong(aiotrace_first_id);
}

PyDoc_STRVAR(task_running_doc,
             "task_running(task)\n--\n\nA traced task is running here, in a step that began before tracing did.");

static PyObject *
task_running(PyObject *Py_UNUSED(module), PyObject *task)
{
    TracedTask *traced = aiotrace_find_task(task);
    if (traced != NULL && traced->state == TRACES) {
        aiotrace_is_preset = 1;
        set_task(traced->id);
    }
    Py_RETURN_NONE;
}

/* Whether a task can never run again, because its loop is closed. */
static int
is_stranded(PyObject *task)
{
    PyObject *loop = PyObject_CallMethod(task, "get_loop", NULL);
    PyObject *closed = loop != NULL && loop != Py_None ? PyObject_CallMethod(loop, "is_closed", NULL) : NULL;
    int is_true = closed == Py_True;
    PyErr_Clear();
    Py_XDECREF(closed);
    Py_XDECREF(loop);
    return is_true;
}

PyDoc_STRVAR(task_sweep_doc,
             "task_sweep()\n--\n\n"
             "Record the state of all traced tasks: those of closed loops are lost, the others alive.");

static PyObject *
task_sweep(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    TracedTask *next, *traced = (TracedTask *)Py_XNewRef(aiotrace_first_traced_task());
    for (; traced != NULL; traced = next) { /* a held task stays in the ring, unless it ends */
        PyObject *task = Py_XNewRef(referent(traced->ref));
        if (task != NULL && traced->state == TRACES && traced->runtime == ON_ASYNCIO && is_stranded(task)) {
            next = (TracedTask *)Py_XNewRef(aiotrace_next_traced_task(traced));
            aiotrace_emit_end(traced->id, &aiotrace_name_lost, &aiotrace_name_nothing, aiotrace_read_tsc());
            aiotrace_forget_task(traced);
            aiotrace_unwrap_task(traced);
        }
        else {
            aiotrace_emit_alive(traced);
            next = (TracedTask *)Py_XNewRef(aiotrace_next_traced_task(traced));
        }
        Py_XDECREF(task);
        Py_DECREF(traced);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_stop_doc, "task_stop()\n--\n\nStop tracing, and forget all tasks.");

static PyObject *
task_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    aiotrace_traces_tasks = 0;
    aiotrace_name_pids(INT_MAX);
    forget_all();
    aiotrace_uninstall_asyncio();
    set_task(0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_id_doc, "task_id(task)\n--\n\nThe id of a task; 0 if it is not traced.");

static PyObject *
task_id(PyObject *Py_UNUSED(module), PyObject *task)
{
    TracedTask *traced = aiotrace_find_task(task);
    return PyLong_FromLong(traced == NULL || traced->state != TRACES ? 0 : traced->id);
}

PyDoc_STRVAR(task_counts_doc, "task_counts()\n--\n\nNumbers of traced tasks and of names, for tests.");

static PyObject *
task_counts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("nn", aiotrace_traced_count, (Py_ssize_t)aiotrace_names_used);
}

PyDoc_STRVAR(task_hooked_doc,
             "task_hooked()\n--\n\nHow many steps so far were not plain (step.c): of asyncio's tasks, and of trio's.");

static PyObject *
task_hooked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("KK", (unsigned long long)aiotrace_steps_hooked[ON_ASYNCIO],
                         (unsigned long long)aiotrace_steps_hooked[ON_TRIO]);
}

static PyMethodDef functions[] = {
    {"task_hooked", task_hooked, METH_NOARGS, task_hooked_doc},
    {"task_counts", task_counts, METH_NOARGS, task_counts_doc},
    {"task_id", task_id, METH_O, task_id_doc},
    {"task_running", task_running, METH_O, task_running_doc},
    {"task_forked", task_forked, METH_NOARGS, task_forked_doc},
    {"task_ids", task_ids, METH_O, task_ids_doc},
    {"task_round", task_round, METH_NOARGS, task_round_doc},
    {"task_start", task_start, METH_O, task_start_doc},
    {"task_stop", task_stop, METH_NOARGS, task_stop_doc},
    {"task_sweep", task_sweep, METH_NOARGS, task_sweep_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_tasks_exec(PyObject *module)
{
    if (aiotrace_coroutine_proxy_exec(module) < 0 || aiotrace_asyncio_task_exec(module) < 0 ||
        aiotrace_asyncio_handle_exec(module) < 0 || aiotrace_uvloop_exec(module) < 0 ||
        aiotrace_trio_exec(module) < 0 || aiotrace_asyncio_iterations_exec(module) < 0 ||
        aiotrace_sched_switch_exec(module) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
