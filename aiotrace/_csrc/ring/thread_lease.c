/* The writers of a thread, and what all threads share: whether any recording is open, and the
 * epoch.
 *
 *     the open recordings change -> changed: epoch + 1 -> each thread's lease is stale -> its next event makes a new one
 *
 * Invariant: a lease holds its writers strongly; the thread's pointer to it is cleared when it is
 * deallocated.
 */
#include "ring/cursor.h"

#include <stddef.h>

/* Shared by all threads: written by `changed`, with the GIL held, when the open recordings change. */
int aiotrace_gate;
HOT_DATA uint64_t aiotrace_epoch = 1;

/* Of each thread, which alone writes it: its lease (here), and its id in records (cursor.h). */
THREAD_LOCAL Lease *aiotrace_lease;
THREAD_LOCAL int32_t aiotrace_task;

static PyTypeObject *lease_type; /* written once, at import */

static PyObject *
lease_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    PyObject *writers;
    int pid;
    unsigned long long made_in;
    if (!PyArg_ParseTuple(args, "O!iK:Lease", &PyTuple_Type, &writers, &pid, &made_in))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(writers);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!PyObject_TypeCheck(PyTuple_GET_ITEM(writers, i), aiotrace_cursor_type)) {
            PyErr_SetString(PyExc_TypeError, "a lease is of writers");
            return NULL;
        }
    }
    Lease *self = (Lease *)type->tp_alloc(type, count);
    if (self == NULL)
        return NULL;
    self->epoch = made_in;
    self->thread_pid = pid;
    self->pid = aiotrace_task ? aiotrace_task : pid;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(PyTuple_GET_ITEM(writers, i));
        self->cursors[i] = (Cursor *)PyTuple_GET_ITEM(writers, i);
    }
    if (count == 1 && self->cursors[0]->clock_kind != CLOCK_PYTHON)
        self->only = self->cursors[0];
    aiotrace_lease = self;
    return (PyObject *)self;
}

static int
lease_traverse(Lease *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++)
        Py_VISIT(self->cursors[i]);
    return 0;
}

static int
lease_clear(Lease *self)
{
    self->epoch = 0; /* never current again */
    self->only = NULL;
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++)
        Py_CLEAR(self->cursors[i]);
    return 0;
}

static void
lease_dealloc(Lease *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (aiotrace_lease == self)
        aiotrace_lease = NULL;
    lease_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(lease_doc, "Lease(writers, pid, epoch)\n--\n\nThe writers of the calling thread, from now on.");

static PyType_Slot lease_slots[] = {
    {Py_tp_doc, (void *)lease_doc}, {Py_tp_new, lease_new},         {Py_tp_traverse, lease_traverse},
    {Py_tp_clear, lease_clear},     {Py_tp_dealloc, lease_dealloc}, {0, NULL},
};

static PyType_Spec lease_spec = {
    "aiotrace._c.Lease",
    offsetof(Lease, cursors),
    sizeof(Cursor *),
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    lease_slots,
};

int
aiotrace_is_recording(void)
{
    return aiotrace_gate & GATE_RECORDING;
}

PyDoc_STRVAR(get_task_doc, "get_task()\n--\n\nThe pid of the task that runs in this thread; 0 if tasks are not traced.");

static PyObject *
get_task(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(aiotrace_task);
}

PyDoc_STRVAR(changed_doc,
             "changed(recording, strict)\n--\n\n"
             "The open recordings changed: every lease is stale. Returns the new epoch.");

static PyObject *
changed(PyObject *Py_UNUSED(module), PyObject *args)
{
    int recording, strict;
    if (!PyArg_ParseTuple(args, "pp:changed", &recording, &strict))
        return NULL;
    aiotrace_gate = (recording ? GATE_RECORDING : 0) | (strict ? GATE_STRICT : 0);
    return PyLong_FromUnsignedLongLong(++aiotrace_epoch);
}

PyDoc_STRVAR(get_epoch_doc, "get_epoch()\n--\n\nThe number of the present set of recordings.");

static PyObject *
get_epoch(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(aiotrace_epoch);
}

/* --- module --------------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"changed", changed, METH_VARARGS, changed_doc},
    {"get_epoch", get_epoch, METH_NOARGS, get_epoch_doc},
    {"get_task", get_task, METH_NOARGS, get_task_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_thread_lease_exec(PyObject *module)
{
    if (aiotrace_add_type(module, &lease_spec, &lease_type, "Lease") < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
