/* trio: Coroutine, which stands for the coroutine of a task as `task.coro`.
 *
 *     sent, thrown into: begin_trio, the same to the coroutine, end_trio
 */
#include "task.h"

typedef struct {
    PyObject_HEAD
    PyObject *inner;
    PyObject *task_ref; /* the task holds us */
} Coroutine;

static PyTypeObject *coroutine_type;

static int
begin_trio(Coroutine *self, Step *step, PyObject *sent)
{
    PyObject *task = referent(self->task_ref);
    step->known = NULL;
    if (!is_active || !aiotrace_is_recording() || task == NULL)
        return 0;
    Py_INCREF(task);
    Known *known = find_task(task);
    if (likely(known != NULL))
        known->holders++;
    else
        known = know_task(task, ON_TRIO, 0);
    if (known != NULL) {
        begin_known(step, known, task, &(Ready){NULL, 0, 0});
        if (sent != NULL && Py_TYPE(sent) == trio_error) {
            PyObject *error = PyObject_GetAttrString(sent, "error");
            if (error == NULL)
                PyErr_Clear();
            else if (trio_cancelled != NULL && PyObject_TypeCheck(error, (PyTypeObject *)trio_cancelled))
                step->is_delivered = 1;
            Py_XDECREF(error);
        }
    }
    Py_DECREF(task);
    return known != NULL;
}

/* The end of a step: `yielded` is what it gave to the runner; NULL: it is done, and a pending exception is its end. */
static void
end_trio(Coroutine *self, Step *step, PyObject *yielded)
{
    Known *known = step->known;
    if (known == NULL)
        return;
    if (known->is_silent) {
        leave(step);
        return;
    }
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    if (type != NULL)
        PyErr_NormalizeException(&type, &value, &traceback);
    Name awaited = name_done;
    int depth = 0, is_handling = 0;
    if (yielded != NULL) {
        PyObject *innermost = find_innermost(self->inner, &depth, &awaited, &is_handling);
        if (innermost == NULL || depth == 0)
            awaited = find_name((PyObject *)Py_TYPE(yielded), 0);
        Py_XDECREF(innermost);
    }
    record_step(step, &awaited);
    int is_stop = value == NULL || PyObject_TypeCheck(value, (PyTypeObject *)PyExc_StopIteration);
    int is_cancelled = !is_stop && is_cancelled_error(value);
    if (unlikely(step->is_delivered && (yielded == NULL ? is_cancelled : is_handling))) {
        /* only now: every sleep of trio's ends by a cancellation that the sleep itself takes back */
        if (!known->is_cancelled && !IS_OFF(DELIVERED))
            EMIT(DELIVERED, PyLong_FromLong(known->id));
        known->is_cancelled = 1;
        if (yielded != NULL && !IS_OFF(CAUGHT))
            EMIT(CAUGHT, PyLong_FromLong(known->id), line_of(step->task));
    }
    if (yielded == NULL) {
        tell_done(step, is_cancelled, is_stop ? NULL : value);
        forget_task(step->task, known);
    }
    go_on_with_round(step->began);
    leave(step);
    if (type != NULL)
        PyErr_Restore(type, value, traceback);
}

static PySendResult
coroutine_am_send(PyObject *self, PyObject *sent, PyObject **result)
{
    Coroutine *own = (Coroutine *)self;
    Step step;
    begin_trio(own, &step, sent);
    int is_watched = begin_watched(&step);
    PySendResult outcome = PyIter_Send(own->inner, sent, result);
    end_watched(is_watched);
    end_trio(own, &step, outcome == PYGEN_NEXT ? *result : NULL);
    return outcome;
}

static PyObject *
coroutine_send(PyObject *self, PyObject *sent)
{
    PyObject *result;
    switch (coroutine_am_send(self, sent, &result)) {
    case PYGEN_NEXT:
        return result;
    case PYGEN_ERROR:
        return NULL;
    default:
        break;
    }
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result); /* a tuple stays one value */
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *
coroutine_throw(PyObject *self, PyObject *args)
{
    Coroutine *own = (Coroutine *)self;
    Step step;
    PyObject *throw = PyObject_GetAttrString(own->inner, "throw");
    if (throw == NULL)
        return NULL;
    begin_trio(own, &step, NULL);
    int is_watched = begin_watched(&step);
    PyObject *result = PyObject_Call(throw, args, NULL);
    end_watched(is_watched);
    end_trio(own, &step, result);
    Py_DECREF(throw);
    return result;
}

static PyObject *
coroutine_getattro(PyObject *self, PyObject *name)
{
    static PyObject *send, *throw;
    if (send == NULL && ((send = PyUnicode_InternFromString("send")) == NULL ||
                         (throw = PyUnicode_InternFromString("throw")) == NULL))
        return NULL;
    if (name == send || name == throw || PyUnicode_Compare(name, send) == 0 || PyUnicode_Compare(name, throw) == 0)
        return PyObject_GenericGetAttr(self, name);
    return PyObject_GetAttr(((Coroutine *)self)->inner, name); /* __class__ too: it looks as it did */
}

static PyObject *
coroutine_repr(PyObject *self)
{
    return PyObject_Repr(((Coroutine *)self)->inner);
}

static PyObject *
coroutine_await(PyObject *self)
{
    static PyObject *name;
    if (name == NULL && (name = PyUnicode_InternFromString("__await__")) == NULL)
        return NULL;
    return PyObject_CallMethodNoArgs(((Coroutine *)self)->inner, name);
}

static int
coroutine_traverse(Coroutine *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->inner);
    Py_VISIT(self->task_ref);
    return 0;
}

static void
coroutine_dealloc(Coroutine *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->inner);
    Py_CLEAR(self->task_ref);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef coroutine_methods[] = {
    {"send", coroutine_send, METH_O, NULL},
    {"throw", coroutine_throw, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot coroutine_slots[] = {
    {Py_tp_getattro, coroutine_getattro}, {Py_tp_repr, coroutine_repr},       {Py_tp_traverse, coroutine_traverse},
    {Py_tp_dealloc, coroutine_dealloc},   {Py_tp_methods, coroutine_methods}, {Py_am_send, coroutine_am_send},
    {Py_am_await, coroutine_await},       {0, NULL},
};

static PyType_Spec coroutine_spec = {
    "aiotrace._c.Coroutine",
    sizeof(Coroutine),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    coroutine_slots,
};

PyDoc_STRVAR(task_wrap_doc,
             "task_wrap(task, is_new)\n--\n\n"
             "What stands for a trio task's coroutine, which it has as `coro`. Its spawn is recorded if it is new.");

static PyObject *
task_wrap(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task;
    int is_new;
    if (!PyArg_ParseTuple(args, "Op:task_wrap", &task, &is_new))
        return NULL;
    PyObject *inner = PyObject_GetAttrString(task, "coro");
    if (inner == NULL || Py_TYPE(inner) == coroutine_type)
        return inner;
    Known *known = know_task(task, ON_TRIO, is_new);
    if (known != NULL)
        release(known);
    PyObject *ref = PyWeakref_NewRef(task, NULL);
    Coroutine *made = ref == NULL ? NULL : PyObject_GC_New(Coroutine, coroutine_type);
    if (made == NULL) {
        Py_XDECREF(ref);
        Py_DECREF(inner);
        return NULL;
    }
    made->inner = inner;
    made->task_ref = ref;
    PyObject_GC_Track(made);
    return (PyObject *)made;
}

PyDoc_STRVAR(task_cancelled_doc,
             "task_cancelled(task, message)\n--\n\nWhat runs here asks for the cancellation of a trio task.");

static PyObject *
task_cancelled(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task, *message;
    if (!PyArg_ParseTuple(args, "OU:task_cancelled", &task, &message))
        return NULL;
    Known *known = find_task(task);
    if (known != NULL && !known->is_silent && !IS_OFF(CANCEL)) {
        int32_t id = known->id;
        Name site = find_site();
        EMIT(CANCEL, PyLong_FromLong(id), PyLong_FromLong(aiotrace_get_task()), text_of(&site), Py_NewRef(message));
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(task_unwrap_doc, "task_unwrap(coroutine)\n--\n\nThe coroutine that `task_wrap` was given, or the same.");

static PyObject *
task_unwrap(PyObject *Py_UNUSED(module), PyObject *coroutine)
{
    return Py_NewRef(Py_TYPE(coroutine) == coroutine_type ? ((Coroutine *)coroutine)->inner : coroutine);
}

static PyMethodDef functions[] = {
    {"task_cancelled", task_cancelled, METH_VARARGS, task_cancelled_doc},
    {"task_unwrap", task_unwrap, METH_O, task_unwrap_doc},
    {"task_wrap", task_wrap, METH_VARARGS, task_wrap_doc},
    {NULL, NULL, 0, NULL},
};

int
trio_exec(PyObject *module)
{
    coroutine_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &coroutine_spec, NULL);
    return coroutine_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
