/* LTTng-UST through a C extension: a bound function that converts three numbers and hits a tracepoint. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#define LTTNG_UST_TRACEPOINT_CREATE_PROBES
#define LTTNG_UST_TRACEPOINT_DEFINE
#include "three_tracepoint.h"

static PyObject *
hit(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t Py_UNUSED(nargs))
{
    lttng_ust_tracepoint(aiotrace_benchmark, three, PyLong_AsUnsignedLongLong(args[0]), PyLong_AsLongLong(args[1]),
                         PyFloat_AS_DOUBLE(args[2]));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"tracepoint", (PyCFunction)(void (*)(void))hit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "aiotrace_tracepoint", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit_aiotrace_tracepoint(void)
{
    return PyModule_Create(&definition);
}
