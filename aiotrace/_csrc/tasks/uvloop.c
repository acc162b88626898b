/* uvloop: Loop.call_soon, by which all steps of tasks are scheduled.
 *
 * It is a Cython function: an object with a pointer to the C function that is called. The pointer
 * is replaced while tracing is on: the function stays the same object, and a call costs one more
 * call.
 */
#include "tasks/tasks.h"

static PyObject *function; /* Loop.call_soon; held */
HOT_DATA static vectorcallfunc original;

HOT static __attribute__((noinline)) PyObject *
trace_and_call_soon(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    if (aiotrace_traces_tasks && PyVectorcall_NARGS(nargsf) > 1)
        aiotrace_callback_scheduled(args[1], args[0]);
    return original(callable, args, nargsf, keywords);
}

HOT static PyObject *
traced_call_soon(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    if (PyVectorcall_NARGS(nargsf) > 1 && is_already_ready(args[1]))
        return original(callable, args, nargsf, keywords);
    return trace_and_call_soon(callable, args, nargsf, keywords);
}

/* Where a callable has the pointer to what is called; NULL: it has none. */
static vectorcallfunc *
find_vectorcall(PyObject *callable)
{
    PyTypeObject *type = Py_TYPE(callable);
    if (!PyType_HasFeature(type, Py_TPFLAGS_HAVE_VECTORCALL) || PyType_Check(callable))
        return NULL;
    vectorcallfunc *place = (vectorcallfunc *)((char *)callable + type->tp_vectorcall_offset);
    return *place == NULL ? NULL : place;
}

PyDoc_STRVAR(task_call_soon_doc,
             "task_call_soon(function)\n--\n\n"
             "Trace what that function of a class of loops is called with; None: stop.\n"
             "ValueError if it has an unexpected layout.");

static PyObject *
task_call_soon(PyObject *Py_UNUSED(module), PyObject *wanted)
{
    if (function != NULL) {
        vectorcallfunc *place = find_vectorcall(function);
        if (place != NULL && *place == traced_call_soon)
            *place = original;
        Py_CLEAR(function);
    }
    if (wanted == Py_None)
        Py_RETURN_NONE;
    vectorcallfunc *place = find_vectorcall(wanted);
    if (place == NULL || !PyType_HasFeature(Py_TYPE(wanted), Py_TPFLAGS_METHOD_DESCRIPTOR)) {
        PyErr_Format(PyExc_ValueError, "%R has an unexpected layout", wanted);
        return NULL;
    }
    if (*place != traced_call_soon) {
        original = *place;
        *place = traced_call_soon;
    }
    function = Py_NewRef(wanted);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"task_call_soon", task_call_soon, METH_O, task_call_soon_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_uvloop_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
