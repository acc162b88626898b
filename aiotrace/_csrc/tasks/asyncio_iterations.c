/* The iterations of asyncio's loops, seen where a loop asks its selector; _tracers/loop.py says
 * what they are. */
#include "tasks/tasks.h"

static PyObject *iteration; /* the event */
static PyObject *select_method; /* the selector's own */
static PyObject *get_running_loop, *selector_name, *ready_name, *scheduled_name, *when_name;

/* What loop:iteration holds; the order and the padding of _tracers/loop.py's definition. */
typedef struct {
    uint32_t ready, padding;
    uint64_t poll_ns, late_ns;
} IterationRecord;

/* Record an iteration: its loop has just been told what files are ready. */
static void
emit_iteration(PyObject *selector, PyObject *found, uint64_t began)
{
    uint64_t now = aiotrace_read_tsc(), late = 0;
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
                aiotrace_call_event(iteration, 3,
                                    (PyObject *[]){PyLong_FromUnsignedLong(record.ready),
                                                   PyLong_FromUnsignedLongLong(record.poll_ns),
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
    int is_wanted = !aiotrace_event_is_off(iteration) && !aiotrace_thread_is_internal();
    uint64_t began = is_wanted ? aiotrace_read_tsc() : 0;
    PyObject *found = PyObject_Vectorcall(select_method, stack, (size_t)nargs + 1, keywords);
    if (is_wanted && found != NULL)
        emit_iteration(selector, found, began);
    return found;
}

static PyMethodDef select_def = {"select", (PyCFunction)(void (*)(void))traced_select, METH_FASTCALL | METH_KEYWORDS,
                                 NULL};

PyDoc_STRVAR(task_select_doc,
             "task_select(type, original, get_running_loop, event)\n--\n\n"
             "A replacement of `select` for a type of selectors that records the iterations of loops.");

static PyObject *
task_select(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *type;
    PyObject *original, *running, *event;
    if (!PyArg_ParseTuple(args, "O!OOO:task_select", &PyType_Type, &type, &original, &running, &event))
        return NULL;
    if (!aiotrace_event_check(event)) {
        PyErr_SetString(PyExc_TypeError, "task_select takes an event of the C module");
        return NULL;
    }
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

static PyMethodDef functions[] = {
    {"task_select", task_select, METH_VARARGS, task_select_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_asyncio_iterations_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
