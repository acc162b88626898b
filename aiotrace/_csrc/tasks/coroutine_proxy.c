/* Coroutine: the object that replaces the coroutine of a traced task; it is also the state of the
 * task.
 *
 *     task -> TracedTask -> inner, the coroutine       send, throw: begin_step, the same on `inner`, end_step
 *
 * A program never sees those of asyncio's tasks (asyncio_task.c); those of trio's it sees, and they
 * behave like the coroutine. It is deallocated with its task. If it is still registered then, the
 * task was pending: it is lost.
 */
#include "tasks/tasks.h"

#define FREE_MAX 256 /* objects whose memory is kept */

HOT_DATA PyTypeObject *aiotrace_coroutine_type;

static TracedTask *free_tasks;
static int free_count;

/* Holds both. Not in the ring yet. NULL with an exception. */
HOT TracedTask *
aiotrace_new_traced_task(PyObject *inner, PyObject *ref)
{
    TracedTask *traced = free_tasks;
    if (likely(traced != NULL)) {
        free_tasks = traced->next;
        free_count--;
        PyObject_Init((PyObject *)traced, aiotrace_coroutine_type);
    }
    else if ((traced = PyObject_GC_New(TracedTask, aiotrace_coroutine_type)) == NULL) {
        return NULL;
    }
    memset((char *)traced + sizeof(PyObject), 0, sizeof *traced - sizeof(PyObject));
    traced->inner = Py_NewRef(inner);
    traced->ref = Py_NewRef(ref);
    PyObject_GC_Track(traced);
    return traced;
}

/* Whether a coroutine has ended; it may have in the step in which tracing was switched on, of which
 * we see no end. */
static int
has_ended(PyObject *coroutine)
{
    PyObject *frame = PyCoro_CheckExact(coroutine) ? read_field(&aiotrace_reader_frame, coroutine, 1) : NULL;
    int ended = frame == Py_None;
    Py_XDECREF(frame);
    return ended;
}

HOT static void
coroutine_dealloc(TracedTask *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, coroutine_dealloc)
    if (self->next != NULL) {
        int is_lost = self->state == TRACES && (self->has_run || !has_ended(self->inner));
        int32_t id = self->id;
        aiotrace_forget_task(self);
        if (is_lost) {
            PyObject *kind, *value, *traceback;
            PyErr_Fetch(&kind, &value, &traceback);
            aiotrace_emit_end(id, &aiotrace_name_lost, &aiotrace_name_nothing, aiotrace_read_tsc());
            PyErr_Restore(kind, value, traceback);
        }
    }
    Py_CLEAR(self->inner);
    Py_CLEAR(self->ref);
    Py_CLEAR(self->name);
    if (free_count < FREE_MAX) {
        self->next = free_tasks;
        free_tasks = self;
        free_count++;
    }
    else {
        type->tp_free((PyObject *)self);
    }
    Py_DECREF(type);
    Py_TRASHCAN_END
}

static int
coroutine_traverse(TracedTask *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->inner);
    Py_VISIT(self->ref);
    return 0;
}

/* --- a step -------------------------------------------------------------------------------------------------- */

HOT static PyObject *
coroutine_send(PyObject *self, PyObject *sent)
{
    PyObject *result;
    PySendResult how = aiotrace_send_step(self, sent, &result);
    if (likely(how == PYGEN_NEXT))
        return result;
    if (how == PYGEN_ERROR)
        return NULL;
    if (result == Py_None) {
        Py_DECREF(result);
        PyErr_SetNone(PyExc_StopIteration);
        return NULL;
    }
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result); /* a tuple stays one value */
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static int
is_cancellation(PyObject *thrown)
{
    PyTypeObject *kind = PyType_Check(thrown) ? (PyTypeObject *)thrown : Py_TYPE(thrown);
    return PyType_IsSubtype(kind, (PyTypeObject *)aiotrace_cancelled_error);
}

static PyObject *
coroutine_throw(PyObject *self, PyObject *args)
{
    TracedTask *traced = (TracedTask *)self;
    PyObject *throw = PyObject_GetAttrString(traced->inner, "throw");
    if (throw == NULL || traced->state == PASSES || PyTuple_GET_SIZE(args) == 0) {
        PyObject *result = throw == NULL ? NULL : PyObject_Call(throw, args, NULL);
        Py_XDECREF(throw);
        return result;
    }
    Step step;
    aiotrace_begin_step(&step, traced);
    if (traced->runtime == ON_ASYNCIO && traced->cancels > 0 && traced->state == TRACES &&
        is_cancellation(PyTuple_GET_ITEM(args, 0)))
        aiotrace_emit_delivered(&step);
    PyObject *result = PyObject_Call(throw, args, NULL);
    Py_DECREF(throw);
    aiotrace_end_sent(&step, result);
    return result;
}

/* --- what it looks like -------------------------------------------------------------------------------------- */

static PyObject *send_name, *throw_name, *await_name;

HOT static PyObject *
coroutine_getattro(PyObject *self, PyObject *name)
{
    if (name == send_name || name == throw_name || PyUnicode_Compare(name, send_name) == 0 ||
        PyUnicode_Compare(name, throw_name) == 0)
        return PyObject_GenericGetAttr(self, name);
    return PyObject_GetAttr(((TracedTask *)self)->inner, name); /* __class__ too: it looks as it did */
}

static PyObject *
coroutine_repr(PyObject *self)
{
    return PyObject_Repr(((TracedTask *)self)->inner);
}

static PyObject *
coroutine_await(PyObject *self)
{
    return PyObject_CallMethodNoArgs(((TracedTask *)self)->inner, await_name);
}

static PyMethodDef coroutine_methods[] = {
    {"send", coroutine_send, METH_O, NULL},
    {"throw", coroutine_throw, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot coroutine_slots[] = {
    {Py_tp_getattro, coroutine_getattro}, {Py_tp_repr, coroutine_repr},       {Py_tp_traverse, coroutine_traverse},
    {Py_tp_dealloc, coroutine_dealloc},   {Py_tp_methods, coroutine_methods}, {Py_am_send, aiotrace_send_step},
    {Py_am_await, coroutine_await},       {0, NULL},
};

static PyType_Spec coroutine_spec = {
    "aiotrace._c.Coroutine",
    sizeof(TracedTask),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    coroutine_slots,
};

int
aiotrace_coroutine_proxy_exec(PyObject *module)
{
    if ((send_name = PyUnicode_InternFromString("send")) == NULL ||
        (throw_name = PyUnicode_InternFromString("throw")) == NULL ||
        (await_name = PyUnicode_InternFromString("__await__")) == NULL)
        return -1;
    aiotrace_coroutine_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &coroutine_spec, NULL);
    return aiotrace_coroutine_type == NULL ? -1 : 0;
}
