/* Switches and wake-ups of tasks as the kernel's events sched_switch and sched_waking, so that its
 * tools draw when each ran.
 *
 *     made_ready        sched_waking    the task, unless it continues by itself; by what runs here
 *     a step begins     sched_switch    who ran before, R -> the task
 *            ends       sched_switch    the task, R: ready at once, S: it waits, Z: it is done -> who ran before
 *
 * They follow the pid of the records: common_pid is prev_pid, and from a switch on it is next_pid.
 * A switch to a task has its switch back in the same thread, unless the recording ends first. Who
 * ran before is stored by value: a greenlet moves what is on the stack. _tracers/sched.py starts
 * and stops this.
 */
#include "tasks/tasks.h"

#include "common/utf8.h"

#define PRIO 120 /* of a process of the kernel's that asked for none */

HOT_DATA int aiotrace_emits_sched_events;

static PyObject *switch_event, *waking_event;
static PyObject *name_thread; /* () -> (pid, name) */
static unsigned start_count; /* counts the starts: what a thread knows of an earlier one is out of date */
static THREAD_LOCAL unsigned identified_in;
static THREAD_LOCAL Runner thread, running;

static const Runner unknown = {0, "<...>"}; /* as the kernel writes it */

/* --- names --------------------------------------------------------------------------------------------------- */

/* What the saved command lines make of a name (_formats/tracedat.py): one word of at most 15 bytes. */
static void
put_comm(char comm[COMM_SIZE], PyObject *name)
{
    Py_ssize_t length = PyUnicode_GET_LENGTH(name);
    int kind = PyUnicode_KIND(name), read = 0;
    const void *data = PyUnicode_DATA(name);
    unsigned char *out = (unsigned char *)comm;
    memset(comm, 0, COMM_SIZE);
    for (Py_ssize_t i = 0; i < length; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, i);
        if (Py_UNICODE_ISSPACE(c) || c < 0x20 || c == 0x7F)
            c = '_';
        read += utf8_size(c);
        if (read > COMM_SIZE - 1)
            break;
        if (c >= 0xD800 && c <= 0xDFFF) /* a surrogate has no UTF-8 */
            continue;
        out = put_utf8(out, c);
    }
    if (length == 0)
        comm[0] = '?';
}

const char *
aiotrace_comm_of(TracedTask *traced)
{
    PyObject *task = Py_XNewRef(referent(traced->ref));
    if (task != NULL && traced->comm[0] == 0) {
        PyObject *name = aiotrace_name_of_task(task, traced->runtime);
        if (name != NULL)
            put_comm(traced->comm, name);
        Py_XDECREF(name);
        PyErr_Clear();
    }
    Py_XDECREF(task);
    return traced->comm;
}

/* Find out the pid and name of this thread. May call Python, once for each thread. */
static void
identify_thread(void)
{
    if (likely(identified_in == start_count))
        return;
    identified_in = start_count;
    running = thread = unknown;
    PyObject *answer = PyObject_CallNoArgs(name_thread), *name;
    if (answer == NULL || !PyArg_ParseTuple(answer, "iU", &thread.pid, &name))
        PyErr_WriteUnraisable(name_thread);
    else
        put_comm(thread.comm, name);
    Py_XDECREF(answer);
}

/* --- records ------------------------------------------------------------------------------------------------- */

/* What the two hold; the order and the padding of _tracers/sched.py's definitions. */
typedef struct {
    char prev_comm[COMM_SIZE];
    int32_t prev_pid, prev_prio;
    int64_t prev_state;
    char next_comm[COMM_SIZE];
    int32_t next_pid, next_prio;
} SwitchRecord;

typedef struct {
    char comm[COMM_SIZE];
    int32_t pid, prio;
} WakingRecord;

static PyObject *
text_of_comm(const char *comm)
{
    return PyUnicode_DecodeUTF8(comm, (Py_ssize_t)strlen(comm), "replace");
}

/* An exception that is pending stays so. */
static void
emit_switch(const Runner *from, const Runner *to, int64_t state, uint64_t now)
{
    SwitchRecord record = {.prev_pid = from->pid, .prev_prio = PRIO, .prev_state = state, .next_pid = to->pid,
                           .next_prio = PRIO};
    memcpy(record.prev_comm, from->comm, COMM_SIZE);
    memcpy(record.next_comm, to->comm, COMM_SIZE);
    if (likely(aiotrace_event_numbers(switch_event, now, &record)))
        return;
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    PyObject *arguments[] = {text_of_comm(from->comm), PyLong_FromLong(from->pid), PyLong_FromLong(PRIO),
                             PyLong_FromLongLong(state), text_of_comm(to->comm),   PyLong_FromLong(to->pid),
                             PyLong_FromLong(PRIO)};
    aiotrace_call_event(switch_event, 7, arguments);
    PyErr_Restore(kind, value, traceback);
}

void
aiotrace_emit_waking(TracedTask *traced)
{
    WakingRecord record = {.pid = traced->id, .prio = PRIO};
    memcpy(record.comm, aiotrace_comm_of(traced), COMM_SIZE);
    if (unlikely(!aiotrace_event_numbers(waking_event, traced->ready_ns, &record))) {
        PyObject *arguments[] = {text_of_comm(record.comm), PyLong_FromLong(record.pid), PyLong_FromLong(PRIO)};
        aiotrace_call_event(waking_event, 3, arguments);
    }
}

/* --- switches ------------------------------------------------------------------------------------------------ */

void
aiotrace_switch_in(Switch *made, int32_t previous, int32_t pid, const char *comm, uint64_t now)
{
    Runner next = {.pid = pid};
    identify_thread();
    memcpy(next.comm, comm, COMM_SIZE);
    made->before = previous == 0 ? thread : previous == running.pid ? running : unknown;
    if (previous != 0)
        made->before.pid = previous;
    made->is_made = 1;
    set_task(previous);
    emit_switch(&made->before, &next, RUNS_ON, now);
    set_task(pid);
    running = next;
}

void
aiotrace_switch_out(Switch *made, int32_t pid, const char *comm, int state, uint64_t now)
{
    Runner from = {.pid = pid};
    memcpy(from.comm, comm, COMM_SIZE);
    made->is_made = 0;
    running = made->before;
    if (aiotrace_emits_sched_events)
        emit_switch(&from, &made->before, state, now);
}

int
aiotrace_state_after(const Outcome *outcome)
{
    PyObject *yielded = outcome->yielded;
    if (yielded == NULL)
        return ENDED;
    if (yielded == Py_None) /* a bare yield */
        return RUNS_ON;
    int is_checkpoint = PyType_Check(yielded) &&
                        strcmp(((PyTypeObject *)yielded)->tp_name, "CancelShieldedCheckpoint") == 0; /* trio's */
    return is_checkpoint ? RUNS_ON : WAITS;
}

/* --- start and stop ------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(switch_start_doc,
             "switch_start(switch, waking, name_thread)\n--\n\n"
             "Record switches and wake-ups from now on; see _tracers/sched.py, which alone calls this.");

static PyObject *
switch_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *switched, *waking, *name;
    if (!PyArg_ParseTuple(args, "OOO:switch_start", &switched, &waking, &name))
        return NULL;
    if (!aiotrace_event_check(switched) || !aiotrace_event_check(waking)) {
        PyErr_SetString(PyExc_TypeError, "switch_start takes two events of the C module");
        return NULL;
    }
    Py_XSETREF(switch_event, Py_NewRef(switched));
    Py_XSETREF(waking_event, Py_NewRef(waking));
    Py_XSETREF(name_thread, Py_NewRef(name));
    start_count++;
    aiotrace_emits_sched_events = 1;
    aiotrace_plain_round++;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(switch_stop_doc, "switch_stop()\n--\n\nStop recording them.");

static PyObject *
switch_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    aiotrace_emits_sched_events = 0;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_comm_doc, "task_comm(name)\n--\n\nThe bytes of a comm field for a name; for tests.");

static PyObject *
task_comm(PyObject *Py_UNUSED(module), PyObject *name)
{
    char comm[COMM_SIZE];
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "a name is a str");
        return NULL;
    }
    put_comm(comm, name);
    return PyBytes_FromString(comm);
}

static PyMethodDef functions[] = {
    {"switch_start", switch_start, METH_VARARGS, switch_start_doc},
    {"switch_stop", switch_stop, METH_NOARGS, switch_stop_doc},
    {"task_comm", task_comm, METH_O, task_comm_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_sched_switch_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
