/* The address of a code object: the number of its function in the records.
 *
 *     co_extra of the code object: | choice, 16 bits | address, 48 bits |
 *
 * It is kept in the code object, so there is no look-up per call: `locate`, which is Python, is
 * asked once for each choice of functions. IGNORED means functions that are not traced;
 * sys.monitoring is asked not to call for them again; SILENT for those in which nothing else is
 * traced either: the writers' own, in the middle of which no event can be written. What fails is
 * IGNORED.
 */
#include "calls/calls.h"

#if PY_VERSION_HEX >= 0x030C0000
#define request_extra_index PyUnstable_Eval_RequestCodeExtraIndex
#define get_extra PyUnstable_Code_GetExtra
#define set_extra PyUnstable_Code_SetExtra
#else
#define request_extra_index _PyEval_RequestCodeExtraIndex
#define get_extra _PyCode_GetExtra
#define set_extra _PyCode_SetExtra
#endif

static Py_ssize_t extra_index = -1; /* where code objects keep their address; written by the first start */

uint64_t
aiotrace_find_address(PyObject *code)
{
    void *extra = (void *)(uintptr_t)peek(code);
    if (extra == NULL && get_extra(code, extra_index, &extra) < 0)
        extra = NULL;
    if (address_in((uint64_t)(uintptr_t)extra) < ADDRESS_END)
        return address_in((uint64_t)(uintptr_t)extra);
    uint64_t chosen = aiotrace_tracing.choice; /* another thread may change both, while Python runs */
    PyObject *finder = aiotrace_tracing.locate;
    Py_INCREF(finder);
    PyObject *found = PyObject_CallOneArg(finder, code);
    Py_DECREF(finder);
    uint64_t address = found == NULL ? IGNORED : PyLong_AsUnsignedLongLong(found);
    Py_XDECREF(found);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        address = IGNORED;
    }
    if (set_extra(code, extra_index, (void *)(uintptr_t)(address | chosen << ADDRESS_BITS)) < 0)
        PyErr_Clear();
    return address;
}

/* Find out with this code object whether an extra lies where `peek` looks for it. */
static int
check_extra(PyObject *code)
{
    static const uintptr_t mark = 0x5A5A;
    void *extra = NULL;
    if (set_extra(code, extra_index, (void *)mark) < 0)
        return -1;
    aiotrace_tracing.plain_index = extra_index;
    if (get_extra(code, extra_index, &extra) < 0 || (uintptr_t)extra != mark || peek(code) != mark)
        aiotrace_tracing.plain_index = PY_SSIZE_T_MAX;
    return set_extra(code, extra_index, NULL);
}

int
aiotrace_find_extra(PyObject *code)
{
    if (extra_index >= 0)
        return 0;
    if ((extra_index = request_extra_index(NULL)) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "all places of co_extra are taken");
        return -1;
    }
    return check_extra(code);
}
