/* uvloop: Callback, which stands for the callback of a task in Loop.call_soon.
 *
 *     call_soon: made_ready          called: begin_step, the callback, end_step
 */
#include "task.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *callback;
    Ready ready;
} Callback;

static PyTypeObject *callback_type;
static Callback *free_callbacks[FREE_HANDLES];
static int free_callbacks_count;
static PyObject *call_soon; /* the loop's own */

static PyObject *
callback_vectorcall(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    PyObject *callback = Py_NewRef(((Callback *)callable)->callback);
    Step step;
    begin_step(&step, callback, PyVectorcall_NARGS(nargsf) ? args[0] : NULL, &((Callback *)callable)->ready);
    int is_watched = begin_watched(&step);
    PyObject *result = PyObject_Vectorcall(callback, args, nargsf, keywords);
    end_watched(is_watched);
    end_step(&step);
    Py_DECREF(callback);
    return result;
}

static int
callback_traverse(Callback *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->callback);
    return 0;
}

static void
callback_dealloc(Callback *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->callback);
    forget_ready(&self->ready);
    if (free_callbacks_count < FREE_HANDLES)
        free_callbacks[free_callbacks_count++] = self;
    else
        type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *
callback_getattro(PyObject *self, PyObject *name)
{
    return PyObject_GetAttr(((Callback *)self)->callback, name);
}

static PyObject *
callback_repr(PyObject *self)
{
    return PyObject_Repr(((Callback *)self)->callback);
}

static PyMemberDef callback_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Callback, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot callback_slots[] = {
    {Py_tp_call, PyVectorcall_Call},       {Py_tp_traverse, callback_traverse}, {Py_tp_dealloc, callback_dealloc},
    {Py_tp_getattro, callback_getattro},   {Py_tp_repr, callback_repr},         {Py_tp_members, callback_members},
    {0, NULL},
};

static PyType_Spec callback_spec = {
    "aiotrace._c.Callback",
    sizeof(Callback),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    callback_slots,
};

static PyObject *
traced_call_soon(PyObject *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    PyObject *small[8], **stack = small, *stand_in = NULL;
    size_t all = (size_t)nargs + (keywords != NULL ? (size_t)PyTuple_GET_SIZE(keywords) : 0);
    if (all + 1 > 8 && (stack = PyMem_Malloc((all + 1) * sizeof *stack)) == NULL)
        return PyErr_NoMemory();
    stack[0] = loop;
    memcpy(stack + 1, args, all * sizeof *args);
    if (nargs > 0 && is_active && aiotrace_is_recording() && task_of(args[0]) != NULL) {
        Callback *made = free_callbacks_count ? (Callback *)PyObject_Init((PyObject *)free_callbacks[--free_callbacks_count],
                                                                          callback_type)
                                              : PyObject_GC_New(Callback, callback_type);
        if (made == NULL) {
            PyErr_Clear();
        }
        else {
            made->vectorcall = callback_vectorcall;
            made->callback = Py_NewRef(args[0]);
            made->ready = (Ready){NULL, 0, 0};
            made_ready(args[0], nargs > 1 ? args[1] : NULL, &made->ready);
            PyObject_GC_Track(made);
            stack[1] = stand_in = (PyObject *)made;
        }
    }
    PyObject *result = PyObject_Vectorcall(call_soon, stack, (size_t)nargs + 1, keywords);
    Py_XDECREF(stand_in);
    if (stack != small)
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
    callback_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &callback_spec, NULL);
    return callback_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
