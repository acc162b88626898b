/* trio: the replacement of Task._create, which makes every task; it stores the traced coroutine in
 * `task.coro`.
 *
 *     spawned: _create -> task.coro = TracedTask(task.coro)          each step: task.coro.send(value)
 */
#include "tasks/tasks.h"

static PyObject *create; /* the original */
static PyObject *coro_name;

/* The state of a task, borrowed; NULL: it is not traced. */
static TracedTask *
find_trio_task(PyObject *task)
{
    PyObject *coroutine = PyObject_GetAttr(task, coro_name);
    if (coroutine == NULL) {
        PyErr_Clear();
        return NULL;
    }
    Py_DECREF(coroutine); /* the task holds it */
    return Py_TYPE(coroutine) == aiotrace_coroutine_type && ((TracedTask *)coroutine)->next != NULL ?
 (TracedTask *)coroutine : NULL;
}

/* The object that replaces a task's coroutine, a new reference; NULL without an exception: there is
 * none. */
HOT static TracedTask *
register_trio_task(PyObject *task, int is_new)
{
    PyObject *coroutine = PyObject_GetAttr(task, coro_name);
    TracedTask *traced = NULL;
    if (coroutine == NULL)
        PyErr_Clear();
    else if (Py_TYPE(coroutine) == aiotrace_coroutine_type && ((TracedTask *)coroutine)->next != NULL)
        traced = (TracedTask *)Py_NewRef(coroutine);
    else if (Py_TYPE(coroutine) == aiotrace_coroutine_type) /* of a tracer that was switched off in another thread */
        traced = aiotrace_register_task(task, ((TracedTask *)coroutine)->inner, ON_TRIO, is_new);
    else
        traced = aiotrace_register_task(task, coroutine, ON_TRIO, is_new);
    Py_XDECREF(coroutine);
    return traced;
}

HOT static PyObject *
traced_create(PyObject *Py_UNUSED(type), PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    PyObject *task = PyObject_Vectorcall(create, args, (size_t)nargs, keywords);
    TracedTask *traced = task != NULL && aiotrace_traces_tasks ? register_trio_task(task, 1) : NULL;
    if (traced == NULL)
        return task;
    if (PyObject_SetAttr(task, coro_name, (PyObject *)traced) < 0) {
        PyErr_Clear();
        aiotrace_forget_task(traced);
    }
    aiotrace_emit_spawn(traced, task);
    Py_DECREF(traced);
    return task;
}

static PyMethodDef create_def = {"_create", (PyCFunction)(void (*)(void))traced_create, METH_FASTCALL | METH_KEYWORDS,
                                 NULL};

PyDoc_STRVAR(task_create_doc, "task_create(original)\n--\n\nA replacement of the _create of trio's tasks.");

static PyObject *
task_create(PyObject *Py_UNUSED(module), PyObject *original)
{
    Py_XSETREF(create, Py_NewRef(original));
    return PyCFunction_New(&create_def, NULL);
}

PyDoc_STRVAR(task_wrap_doc, "task_wrap(task)\n--\n\nThe object that is to replace the coroutine of a trio task that existed before.");

static PyObject *
task_wrap(PyObject *Py_UNUSED(module), PyObject *task)
{
    TracedTask *traced = register_trio_task(task, 0);
    if (traced == NULL)
        return PyObject_GetAttr(task, coro_name);
    aiotrace_emit_alive(traced);
    return (PyObject *)traced;
}

PyDoc_STRVAR(task_cancelled_doc,
             "task_cancelled(task, message, scope)\n--\n\nWhat runs here has cancelled a scope that a trio task is in.");

static PyObject *
task_cancelled(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task, *message, *scope;
    if (!PyArg_ParseTuple(args, "OUO:task_cancelled", &task, &message, &scope))
        return NULL;
    TracedTask *traced = find_trio_task(task);
    if (unlikely(aiotrace_cancel_watch != NULL) && traced != NULL && traced->state == TRACES)
        aiotrace_call_cancel_watch(traced, task, scope);
    if (traced != NULL && traced->state == TRACES && !is_off(CANCEL)) {
        int32_t id = traced->id;
        Name site = aiotrace_find_site();
        EMIT(CANCEL, PyLong_FromLong(id), PyLong_FromLong(aiotrace_task), aiotrace_text_of(&site), Py_NewRef(message));
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"task_cancelled", task_cancelled, METH_VARARGS, task_cancelled_doc},
    {"task_create", task_create, METH_O, task_create_doc},
    {"task_wrap", task_wrap, METH_O, task_wrap_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_trio_exec(PyObject *module)
{
    if ((coro_name = PyUnicode_InternFromString("coro")) == NULL)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
