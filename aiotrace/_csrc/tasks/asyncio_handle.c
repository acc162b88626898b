/* asyncio: Handle, a C subclass of events.Handle, which every callback of every loop is made with.
 *
 *     made: callback_scheduled          _run: the callback in its context
 *
 * It is faster than CPython's own, which is Python. Debug mode, and a context that is not a
 * contextvars.Context, are left to that one.
 */
#include "tasks/tasks.h"

enum { S_CALLBACK, S_ARGS, S_CANCELLED, S_LOOP, S_TRACEBACK, S_REPR, S_CONTEXT, SLOTS };
static const char *const slot_names[SLOTS] = {"_callback", "_args", "_cancelled", "_loop", "_source_traceback",
                                              "_repr",     "_context"};
static Py_ssize_t slot_offsets[SLOTS];
static PyTypeObject *handle_type;
static PyObject *python_init, *python_run;
static PyObject *get_debug_name, *debug_name, *plain_get_debug;
static PyTypeObject *last_loop_type; /* held: a loop type whose get_debug is BaseEventLoop's */

static PyObject *free_handles[FREE_HANDLES];
static int free_handles_count;

#define SLOT(self, n) (*(PyObject **)((char *)(self) + slot_offsets[n]))

/* Whether a loop is in debug mode: 1, 0, or -1 with an exception. */
HOT static int
is_debug(PyObject *loop)
{
    PyObject *value;
    if (unlikely(Py_TYPE(loop) != last_loop_type)) {
        PyObject *found = PyObject_GetAttr((PyObject *)Py_TYPE(loop), get_debug_name);
        if (found == NULL)
            PyErr_Clear();
        int is_plain = found == plain_get_debug;
        Py_XDECREF(found);
        if (!is_plain) {
            value = PyObject_CallMethodNoArgs(loop, get_debug_name);
            goto answer;
        }
        Py_INCREF(Py_TYPE(loop));
        Py_XSETREF(last_loop_type, Py_TYPE(loop));
    }
    PyObject **dict = _PyObject_GetDictPtr(loop); /* where it is nearly always: some 40 ns less */
    if (likely(dict != NULL && *dict != NULL && (value = PyDict_GetItemWithError(*dict, debug_name)) != NULL))
        return value == Py_False ? 0 : PyObject_IsTrue(value);
    PyErr_Clear();
    value = PyObject_GetAttr(loop, debug_name);
answer:
    if (value == NULL)
        return -1;
    int is_true = value == Py_False ? 0 : PyObject_IsTrue(value);
    Py_DECREF(value);
    return is_true;
}

static inline void
handle_made(PyObject *self)
{
    PyObject *callback = SLOT(self, S_CALLBACK), *loop = SLOT(self, S_LOOP);
    if (aiotrace_traces_tasks && callback != NULL && loop != NULL)
        aiotrace_callback_scheduled(callback, loop);
}

static int
handle_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    Py_ssize_t count = PyTuple_GET_SIZE(args);
    PyObject *all = PyTuple_New(count + 1);
    if (all == NULL)
        return -1;
    PyTuple_SET_ITEM(all, 0, Py_NewRef(self));
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(all, i + 1, Py_NewRef(PyTuple_GET_ITEM(args, i)));
    PyObject *result = PyObject_Call(python_init, all, keywords);
    Py_DECREF(all);
    if (result == NULL)
        return -1;
    Py_DECREF(result);
    handle_made(self);
    return 0;
}

/* An untracked handle, empty. Each callback has one, so a few that are free are kept. */
HOT static PyObject *
new_handle(PyTypeObject *type)
{
    PyObject *self;
    if (likely(type == handle_type && free_handles_count > 0)) {
        self = free_handles[--free_handles_count];
        return PyObject_Init(self, type);
    }
    if ((self = type->tp_alloc(type, 0)) != NULL)
        PyObject_GC_UnTrack(self);
    return self;
}

HOT static PyObject *
handle_vectorcall(PyObject *type, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    PyTypeObject *cls = (PyTypeObject *)type;
    int debug = 1;
    if (keywords == NULL && (count == 3 || count == 4) && (debug = is_debug(args[2])) < 0)
        return NULL;
    PyObject *self = new_handle(cls);
    if (self == NULL)
        return NULL;
    if (debug) { /* or called in another way: as Python does it */
        PyObject *stack[8], *result = NULL;
        Py_ssize_t all = count + (keywords != NULL ? PyTuple_GET_SIZE(keywords) : 0);
        if (all > 7) {
            PyErr_SetString(PyExc_TypeError, "Handle() takes at most 4 arguments");
        }
        else {
            stack[0] = self;
            memcpy(stack + 1, args, (size_t)all * sizeof *args);
            result = PyObject_Vectorcall(python_init, stack, (size_t)count + 1, keywords);
        }
        if (result == NULL) {
            PyObject_GC_Track(self);
            Py_DECREF(self);
            return NULL;
        }
        Py_DECREF(result);
    }
    else {
        PyObject *context = count == 4 && args[3] != Py_None ? Py_NewRef(args[3]) : PyContext_CopyCurrent();
        if (context == NULL) {
            PyObject_GC_Track(self);
            Py_DECREF(self);
            return NULL;
        }
        SLOT(self, S_CONTEXT) = context;
        SLOT(self, S_CALLBACK) = Py_NewRef(args[0]);
        SLOT(self, S_ARGS) = Py_NewRef(args[1]);
        SLOT(self, S_LOOP) = Py_NewRef(args[2]);
        SLOT(self, S_CANCELLED) = Py_NewRef(Py_False);
        SLOT(self, S_TRACEBACK) = Py_NewRef(Py_None);
        SLOT(self, S_REPR) = Py_NewRef(Py_None);
    }
    PyObject_GC_Track(self);
    handle_made(self);
    return self;
}

static int
handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; i < SLOTS; i++)
        Py_VISIT(SLOT(self, i));
    return 0;
}

HOT static int
handle_clear(PyObject *self)
{
    for (int i = 0; i < SLOTS; i++)
        Py_CLEAR(SLOT(self, i));
    return 0;
}

HOT static void
handle_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, handle_dealloc)
    PyObject_ClearWeakRefs(self);
    handle_clear(self);
    if (type == handle_type && free_handles_count < FREE_HANDLES)
        free_handles[free_handles_count++] = self;
    else
        type->tp_free(self);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

/* Call in a context, as Context.run does. */
HOT static PyObject *
run_in_context(PyObject *context, PyObject *callback, PyObject *args)
{
    if (PyContext_Enter(context) < 0)
        return NULL;
    PyObject *result = PyObject_Vectorcall(callback, &PyTuple_GET_ITEM(args, 0), (size_t)PyTuple_GET_SIZE(args), NULL);
    if (unlikely(result == NULL)) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (PyContext_Exit(context) < 0) {
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(traceback);
        }
        else {
            PyErr_Restore(type, value, traceback);
        }
    }
    else if (PyContext_Exit(context) < 0) {
        Py_CLEAR(result);
    }
    return result;
}

/* Give an exception of a callback to the loop's handler, as Handle._run does. */
static PyObject *
report_exception(PyObject *self)
{
    PyObject *type, *value, *traceback;
    if (PyErr_ExceptionMatches(PyExc_SystemExit) || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    PyObject *handled = PyErr_GetHandledException();
    PyErr_SetHandledException(value);
    PyObject *stack[] = {self, value};
    PyObject *result = PyObject_Vectorcall(aiotrace_report, stack, 2, NULL);
    PyErr_SetHandledException(handled);
    Py_XDECREF(handled);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return result;
}

HOT static PyObject *
handle_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *callback = Py_XNewRef(SLOT(self, S_CALLBACK)), *args = Py_XNewRef(SLOT(self, S_ARGS)),
             *context = Py_XNewRef(SLOT(self, S_CONTEXT)), *result;
    if (unlikely(aiotrace_is_preset)) {
        aiotrace_is_preset = 0;
        set_task(0);
    }
    int is_watched = 0;
    /* that is watched as it is sent */
    if (unlikely(aiotrace_is_watched) && (callback == NULL || !aiotrace_is_traced_step(callback)))
        is_watched = begin_watched(0, 0);
    if (likely(callback != NULL && args != NULL && PyTuple_CheckExact(args) && context != NULL &&
               PyContext_CheckExact(context))) {
        result = run_in_context(context, callback, args);
        end_watched(is_watched);
        if (unlikely(result == NULL)) {
            result = report_exception(self);
        }
        else {
            Py_SETREF(result, Py_NewRef(Py_None));
        }
    }
    else { /* a context of another type, or a handle that was cancelled: as Python does it */
        result = PyObject_CallOneArg(python_run, self);
        end_watched(is_watched);
    }
    Py_XDECREF(callback);
    Py_XDECREF(args);
    Py_XDECREF(context);
    return result;
}

static PyMethodDef handle_methods[] = {
    {"_run", handle_run, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "Object returned by callback registration methods."},
    {Py_tp_init, handle_init},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, handle_methods},
    {0, NULL},
};

PyDoc_STRVAR(task_handle_doc,
             "task_handle(base, get_debug, report)\n--\n\n"
             "A subclass of asyncio.events.Handle that traces. ValueError if its objects have an unexpected layout.\n\n"
             "get_debug is BaseEventLoop's; report(handle, exception) does what Handle does of an exception.");

static PyObject *
task_handle(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *base;
    PyObject *get_debug, *new_report;
    if (!PyArg_ParseTuple(args, "O!OO:task_handle", &PyType_Type, &base, &get_debug, &new_report))
        return NULL;
    if (handle_type != NULL)
        return Py_NewRef((PyObject *)handle_type);
    Py_ssize_t size = sizeof(PyObject) + SLOTS * sizeof(PyObject *);
    for (int i = 0; i < SLOTS; i++) {
        PyObject *found = PyObject_GetAttrString((PyObject *)base, slot_names[i]);
        if (found == NULL)
            return NULL;
        int is_slot = Py_TYPE(found) == &PyMemberDescr_Type &&
                                     ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX;
        slot_offsets[i] = is_slot ? ((PyMemberDescrObject *)found)->d_member->offset : -1;
        Py_DECREF(found);
        if (!is_slot)
            goto unknown;
    }
    if (base->tp_weaklistoffset > 0) /* else it lies in front of the object */
        size += sizeof(PyObject *);
    if (base->tp_basicsize != size || base->tp_dictoffset != 0)
        goto unknown;
    get_debug_name = PyUnicode_InternFromString("get_debug");
    debug_name = PyUnicode_InternFromString("_debug");
    python_init = PyObject_GetAttrString((PyObject *)base, "__init__");
    python_run = PyObject_GetAttrString((PyObject *)base, "_run");
    if (get_debug_name == NULL || debug_name == NULL || python_init == NULL || python_run == NULL)
        return NULL;
    plain_get_debug = Py_NewRef(get_debug);
    aiotrace_report = Py_NewRef(new_report);
    PyType_Spec spec = {"asyncio.events.Handle", (int)size, 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, handle_slots};
    PyTypeObject *made = (PyTypeObject *)PyType_FromSpecWithBases(&spec, (PyObject *)base);
    if (made == NULL)
        return NULL;
    made->tp_vectorcall = handle_vectorcall;
    handle_type = made;
    return Py_NewRef((PyObject *)made);
unknown:
    PyErr_Format(PyExc_ValueError, "%R has an unexpected layout", base);
    return NULL;
}

static PyMethodDef functions[] = {
    {"task_handle", task_handle, METH_VARARGS, task_handle_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_asyncio_handle_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
