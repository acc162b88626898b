/* uvloop: Loop.call_soon, which all steps of tasks are scheduled by. */
#include "task.h"

static PyObject *call_soon; /* the loop's own */

static PyObject *
traced_call_soon(PyObject *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    PyObject *small[8], **stack = small;
    size_t all = (size_t)nargs + (keywords != NULL ? (size_t)PyTuple_GET_SIZE(keywords) : 0);
    if (is_active && nargs > 0)
        callback_scheduled(args[0], loop);
    if (unlikely(all + 1 > 8) && (stack = PyMem_Malloc((all + 1) * sizeof *stack)) == NULL)
        return PyErr_NoMemory();
    stack[0] = loop;
    memcpy(stack + 1, args, all * sizeof *args);
    PyObject *result = PyObject_Vectorcall(call_soon, stack, (size_t)nargs + 1, keywords);
    if (unlikely(stack != small))
        PyMem_Free(stack);
    return result;
}

static PyMethodDef call_soon_def = {"call_soon", (PyCFunction)(void (*)(void))traced_call_soon,
                                    METH_FASTCALL | METH_KEYWORDS, NULL};

PyDoc_STRVAR(task_call_soon_doc,
             "task_call_soon(type, original)\n--\n\nWhat stands for call_soon in a type of loops.");

static PyObject *
task_call_soon(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *type;
    PyObject *original;
    if (!PyArg_ParseTuple(args, "O!O:task_call_soon", &PyType_Type, &type, &original))
        return NULL;
    Py_XSETREF(call_soon, Py_NewRef(original));
    return PyDescr_NewMethod(type, &call_soon_def);
}

static PyMethodDef functions[] = {
    {"task_call_soon", task_call_soon, METH_VARARGS, task_call_soon_doc},
    {NULL, NULL, 0, NULL},
};

int
uvloop_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
