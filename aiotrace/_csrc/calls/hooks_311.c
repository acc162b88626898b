/* The hooks of Python 3.11: a C profile function, in every thread.
 *
 * Invariant: a thread that has another profile function keeps it.
 */
#include "calls/call.h"

#if PY_VERSION_HEX < 0x030C0000

#define Py_BUILD_CORE
#include <internal/pycore_frame.h>
#undef Py_BUILD_CORE

static uint64_t hooked;

PyDoc_STRVAR(hooked_doc,
             "function_hooked()\n--\n\n"
             "How often the profile function was called so far: for functions that are not traced too, and those of C.");

static PyObject *
function_hooked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(hooked);
}

static int
profile(PyObject *Py_UNUSED(object), PyFrameObject *frame, int what, PyObject *Py_UNUSED(argument))
{
    hooked++;
    if (what == PyTrace_CALL)
        enter((PyObject *)frame->f_frame->f_code);
    else if (what == PyTrace_RETURN)
        leave((PyObject *)frame->f_frame->f_code);
    return 0;
}

PyDoc_STRVAR(profile_all_doc,
             "function_profile_all(on)\n--\n\n"
             "Install the profile function in every thread that has none, or remove it. Returns False, without\n"
             "effect, if the calling thread has another one.");

static PyObject *
function_profile_all(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int on = PyObject_IsTrue(argument);
    if (on < 0)
        return NULL;
    PyThreadState *here = PyThreadState_Get();
    if (on && here->c_profilefunc != NULL && here->c_profilefunc != profile)
        Py_RETURN_FALSE;
    for (PyThreadState *thread = PyInterpreterState_ThreadHead(PyInterpreterState_Get()); thread != NULL;
         thread = PyThreadState_Next(thread)) {
        if (thread->c_profilefunc == (on ? NULL : profile) && _PyEval_SetProfile(thread, on ? profile : NULL, NULL) < 0)
            return NULL;
    }
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(profile_thread_doc, "For threading.setprofile: puts the profile function into the thread that calls it.");

static PyObject *
function_profile_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    if (_PyEval_SetProfile(PyThreadState_Get(), aiotrace_tracing.locate == NULL ? NULL : profile, NULL) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"function_hooked", function_hooked, METH_NOARGS, hooked_doc},
    {"function_profile_all", function_profile_all, METH_O, profile_all_doc},
    {"function_profile_thread", function_profile_thread, METH_VARARGS, profile_thread_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_hooks_311_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}

#endif
