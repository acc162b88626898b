/* The hooks of Python 3.12 and newer: callbacks of sys.monitoring for the begin and end of calls.
 *
 *     function_enter, function_leave    may return DISABLE, for a function that is not traced: it is not called for it again
 *     function_throw, function_unwind   may not: the same where an exception enters, and leaves
 *
 * Invariant: the interpreter calls them with a code object first. Called with anything else they do
 * nothing.
 */
#include "calls/call.h"

#include <stddef.h>
#include <structmember.h>

#if PY_VERSION_HEX >= 0x030C0000

static PyObject *disable; /* sys.monitoring.DISABLE: not to be called for this place again */

/* A callback of sys.monitoring. The interpreter calls it straight: a builtin function costs it 60
 * instructions more. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
} Hook;

static inline __attribute__((always_inline)) int
is_call(PyObject *const *args, size_t nargsf)
{
    return likely(PyVectorcall_NARGS(nargsf) > 0 && PyCode_Check(args[0]));
}

static PyObject *
call_enter(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf) && unlikely(!enter(args[0])))
        return Py_NewRef(disable);
    Py_RETURN_NONE;
}

static PyObject *
call_leave(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf) && unlikely(!leave(args[0])))
        return Py_NewRef(disable);
    Py_RETURN_NONE;
}

static PyObject *
call_throw(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf))
        enter(args[0]);
    Py_RETURN_NONE;
}

static PyObject *
call_unwind(PyObject *Py_UNUSED(hook), PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    if (is_call(args, nargsf))
        leave(args[0]);
    Py_RETURN_NONE;
}

static const struct {
    const char *name;
    vectorcallfunc call;
} hooks[] = {
    {"function_enter", call_enter},   /* a call begins */
    {"function_leave", call_leave},   /* it ends */
    {"function_throw", call_throw},   /* it begins with an exception: cannot be disabled */
    {"function_unwind", call_unwind}, /* it ends with one: cannot be disabled */
};

static void
hook_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef hook_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot hook_slots[] = {
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_dealloc, hook_dealloc},
    {Py_tp_members, hook_members},
    {0, NULL},
};

static PyType_Spec hook_spec = {
    "aiotrace._c.FunctionHook",
    sizeof(Hook),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    hook_slots,
};

static int
add_hooks(PyObject *module)
{
    PyTypeObject *type;
    if (aiotrace_add_type(module, &hook_spec, &type, "FunctionHook") < 0)
        return -1;
    int failed = 0;
    for (size_t i = 0; i < sizeof hooks / sizeof *hooks && !failed; i++) {
        Hook *hook = PyObject_New(Hook, type);
        if (hook != NULL)
            hook->call = hooks[i].call;
        failed = PyModule_AddObjectRef(module, hooks[i].name, (PyObject *)hook) < 0;
        Py_XDECREF(hook);
    }
    Py_DECREF(type);
    return failed ? -1 : 0;
}

static int
find_disable(void)
{
    PyObject *monitoring = PySys_GetObject("monitoring"); /* borrowed */
    if (monitoring == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "sys.monitoring is missing");
        return -1;
    }
    Py_XSETREF(disable, PyObject_GetAttrString(monitoring, "DISABLE"));
    return disable == NULL ? -1 : 0;
}

int
aiotrace_hooks_312_exec(PyObject *module)
{
    return find_disable() < 0 ? -1 : add_hooks(module);
}

#endif
