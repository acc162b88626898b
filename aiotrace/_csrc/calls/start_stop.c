/* The tracers function and function_graph, as Python sees them: start, and stop. calls.h describes
 * the rest.
 *
 * Invariants: a start while tracing is on changes it, and running calls stay on their stacks; a
 * stop ends the generation, so that no stack has to be found and emptied.
 */
#include "calls/records.h"

/* What start and stop set, with the GIL held; each call reads it. */
HOT_DATA int aiotrace_calls_use_tsc;
HOT_DATA Tracing aiotrace_tracing = {.generation = 1, .plain_index = PY_SSIZE_T_MAX};

PyDoc_STRVAR(start_doc,
             "function_start(locate, call, entry, exit, has_tsc)\n--\n\n"
             "Say which events are recorded (None: not), and who gives a code object its address (or IGNORED, SILENT):\n"
             "another function than before is asked for all of them again. has_tsc: whether the kernel makes\n"
             "CLOCK_MONOTONIC from the time stamp counter.");

static PyObject *
function_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *finder, *events[3];
    Kind *places[3] = {&aiotrace_tracing.call, &aiotrace_tracing.entry, &aiotrace_tracing.exit};
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
    if (aiotrace_find_extra(PyFunction_GET_CODE(finder)) < 0)
        return NULL;
    aiotrace_calls_use_tsc = tsc;
    if (aiotrace_tracing.locate != finder)
        aiotrace_tracing.choice = aiotrace_tracing.choice % 0xFFFF + 1;
    Py_INCREF(finder);
    Py_XSETREF(aiotrace_tracing.locate, finder);
    for (int i = 0; i < 3; i++)
        aiotrace_set_kind(places[i], events[i]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(stop_doc, "function_stop()\n--\n\nRecord no more.");

static PyObject *
function_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    aiotrace_tracing.generation++;
    Py_CLEAR(aiotrace_tracing.locate);
    aiotrace_set_kind(&aiotrace_tracing.call, Py_None);
    aiotrace_set_kind(&aiotrace_tracing.entry, Py_None);
    aiotrace_set_kind(&aiotrace_tracing.exit, Py_None);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"function_start", function_start, METH_VARARGS, start_doc},
    {"function_stop", function_stop, METH_NOARGS, stop_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_calls_exec(PyObject *module)
{
#if PY_VERSION_HEX >= 0x030C0000
    const int failed = aiotrace_hooks_312_exec(module);
#else
    const int failed = aiotrace_hooks_311_exec(module);
#endif
    return failed || aiotrace_call_stack_exec() < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
