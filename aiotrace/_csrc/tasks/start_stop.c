/* Tracing of tasks: what runs for each step. The hooks are put in place by _tracers/task.py and the modules beside it.
 *
 *   asyncio   Handle      a subclass of events.Handle, in its place      a callback is made: a task is spawned, or ready
 *   uvloop    call_soon   stands for Loop.call_soon                      the same
 *   trio      create      stands for Task._create                        a task is spawned
 *
 *   all       Coroutine   stands for the task's coroutine, in the task   sent: a step begins ... ends
 *
 * What a step leaves is one record, written at its end: when and by whom it was made ready, how long it ran, what it
 * waits for now. While it runs, the records of its thread carry the task's id as their pid.
 *
 * Laws:
 * - Nothing of ours raises into the program, and a pending exception of the program's is kept.
 * - What is known of a task is the Coroutine, which the task holds; it holds the task by a weak reference. So it is
 *   found without a search, goes with its task, and keeps nothing alive.
 * - Any call into Python may switch threads and change what is known: the ring is changed in one stretch without such
 *   calls, and what is used across a call is held.
 * - Places in CPython's own tasks are taken from the descriptors that Python code uses, or found by looking for what is
 *   known to be there; never guessed.
 */

#include "tasks/tasks.h"

#include <limits.h>

/* --- time ---------------------------------------------------------------------------------------------------- */

HOT_DATA Counter counter;

uint64_t
anchor_clock(void)
{
    uint64_t now = monotonic_ns();
#if HAVE_TSC
    counter.tick = __rdtsc();
    counter.ns = now;
    if (counter.is_constant && counter.multiplier == 0 && now - counter.first_ns > CALIBRATION_NS)
        counter.multiplier = (uint64_t)((double)(now - counter.first_ns) /
                                        (double)(counter.tick - counter.first_tick) * 4294967296.0);
#endif
    return now;
}

void
start_clock(void)
{
#if HAVE_TSC
    unsigned a, b, c, d;
    if (counter.is_constant || !__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & 1u << 8))
        return;
    counter.first_ns = aiotrace_monotonic_ns();
    counter.first_tick = __rdtsc();
    counter.is_constant = 1;
#endif
}

/* --- what Python gave us ------------------------------------------------------------------------------------- */

static const char *const event_names[EVENTS] = {"spawn",  "name",      "ready",  "step",      "done",
                                                "cancel", "delivered", "caught", "swallowed", "alive"};
PyObject *events[EVENTS];
HOT_DATA Kind kinds[EVENTS];

int
look_whether_off(int event)
{
    if (!aiotrace_event_is_off(events[event]))
        return 0;
    kinds[event].off_in = aiotrace_epoch;
    return 1;
}

int
look_whether_plain(int event)
{
    if (*aiotrace_event_plain_epoch(events[event]) != aiotrace_epoch)
        return 0;
    kinds[event].plain_in = aiotrace_epoch;
    return 1;
}

PyObject *describe;     /* (code or type, line) -> (text, key, flags) */
PyObject *name_command; /* (pid, name) */
PyObject *find_line;    /* (task) -> text: where it is suspended */
PyObject *find_inner;   /* (coroutine) -> the coroutine that one of a library's stands for, or None */
PyObject *report;       /* (handle, exception): what events.Handle does of an exception */
PyObject *current_tasks; /* loop -> the task whose step runs, as asyncio has it */
HOT_DATA PyTypeObject *task_type; /* _asyncio.Task */
PyObject *cancelled_error, *trio_cancelled;
HOT_DATA PyTypeObject *trio_error; /* outcome.Error */

HOT_DATA int is_active;

/* --- start and stop --------------------------------------------------------------------------------------------------- */

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
        kinds[i] = (Kind){0, 0, (uint32_t)aiotrace_event_id(event)};
    }
    if (take(&describe, parts, "describe") < 0 || take(&name_command, parts, "name_command") < 0 ||
        take(&find_line, parts, "find_line") < 0 || take(&find_inner, parts, "find_inner") < 0 ||
        take((PyObject **)&task_type, parts, "task_type") < 0 || take(&current_tasks, parts, "current_tasks") < 0 ||
        take(&cancelled_error, parts, "cancelled_error") < 0 || take(&trio_cancelled, parts, "trio_cancelled") < 0 ||
        take((PyObject **)&trio_error, parts, "trio_error") < 0)
        return NULL;
    Door *of_task[] = {&door_waiter, &door_must_cancel, &door_exception, &door_done, &door_cancelled, &door_cancelling,
                       &door_name};
    for (size_t i = 0; i < sizeof of_task / sizeof *of_task; i++)
        if (open_door(of_task[i], task_type) < 0)
            return NULL;
    Door *of_coroutine[] = {&door_code, &door_suspended, &door_frame};
    for (size_t i = 0; i < sizeof of_coroutine / sizeof *of_coroutine; i++)
        if (open_door(of_coroutine[i], &PyCoro_Type) < 0)
            return NULL;
    if (open_door(&door_trio_name, NULL) < 0)
        return NULL;
    if (take_name(&unknown_name, "?") < 0 || take_name(&name_yield, "yield") < 0 || take_name(&name_done, "done") < 0 ||
        take_name(&name_nothing, "") < 0 || take_name(&name_returned, "returned") < 0 ||
        take_name(&name_raised, "raised") < 0 || take_name(&name_cancelled, "cancelled") < 0 ||
        take_name(&name_lost, "lost") < 0)
        return NULL;
    if (first_id != base_id())
        begin_ids(0);
    if (enter_asyncio(parts) < 0)
        return NULL;
    start_clock();
    begin_rounds();
    is_active = 1;
    Py_RETURN_NONE;
}

/* Know no task any more. What stands for the coroutines of trio's is taken back in Python, or passes on. */
static void
forget_all(void)
{
    Known *known;
    while ((known = first_known()) != NULL) {
        Py_INCREF(known);
        forget_task(known);
        if (known->runtime == ON_ASYNCIO)
            unwrap_task(known);
        Py_DECREF(known);
    }
}

PyDoc_STRVAR(task_round_doc, "task_round()\n--\n\nWrite a keyframe of all tasks now.");

static PyObject *
task_round(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    write_whole_round();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_forked_doc,
             "task_forked()\n--\n\nIn a forked child: its tasks are not the parent's, and its ids neither.");

static PyObject *
task_forked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    set_task(0);
    forget_names();
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
    begin_ids((uint32_t)next);
    return PyLong_FromLong(first_id);
}

PyDoc_STRVAR(task_running_doc,
             "task_running(task)\n--\n\nA known task runs here just now, in a step that began before tracing did.");

static PyObject *
task_running(PyObject *Py_UNUSED(module), PyObject *task)
{
    Known *known = find_task(task);
    if (known != NULL && known->state == TRACES) {
        is_preset = 1;
        set_task(known->id);
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
             "Last words of all tasks that are known: those of closed loops are lost, the others alive.");

static PyObject *
task_sweep(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Known *next, *known = (Known *)Py_XNewRef(first_known());
    for (; known != NULL; known = next) { /* what is held stays in the ring, unless its task ends meanwhile */
        PyObject *task = Py_XNewRef(referent(known->ref));
        if (task != NULL && known->state == TRACES && known->runtime == ON_ASYNCIO && is_stranded(task)) {
            next = (Known *)Py_XNewRef(next_known(known));
            tell_end(known->id, &name_lost, &name_nothing, task_clock());
            forget_task(known);
            unwrap_task(known);
        }
        else {
            tell_alive(known);
            next = (Known *)Py_XNewRef(next_known(known));
        }
        Py_XDECREF(task);
        Py_DECREF(known);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_stop_doc, "task_stop()\n--\n\nTrace no more, and forget all tasks.");

static PyObject *
task_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    is_active = 0;
    name_pids(INT_MAX);
    forget_all();
    leave_asyncio();
    set_task(0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_id_doc, "task_id(task)\n--\n\nThe id of a task; 0 if it is not known.");

static PyObject *
task_id(PyObject *Py_UNUSED(module), PyObject *task)
{
    Known *known = find_task(task);
    return PyLong_FromLong(known == NULL || known->state != TRACES ? 0 : known->id);
}

PyDoc_STRVAR(task_counts_doc, "task_counts()\n--\n\nHow many tasks and names are known, for tests.");

static PyObject *
task_counts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("nn", known_count, (Py_ssize_t)names_used);
}

PyDoc_STRVAR(task_hooked_doc,
             "task_hooked()\n--\n\nHow many steps of tasks were more than sent and recorded, so far: of asyncio's,\n"
             "and of trio's.");

static PyObject *
task_hooked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("KK", (unsigned long long)steps_hooked[ON_ASYNCIO], (unsigned long long)steps_hooked[ON_TRIO]);
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
aiotrace_task_exec(PyObject *module)
{
    if (coroutine_exec(module) < 0 || asyncio_exec(module) < 0 || handle_exec(module) < 0 || uvloop_exec(module) < 0 ||
        trio_exec(module) < 0 || loop_exec(module) < 0 || switch_exec(module) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
