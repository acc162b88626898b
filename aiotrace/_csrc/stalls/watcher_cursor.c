/* A page of the watcher's own: a cursor for a thread without the GIL. _tracers/stall.py turns the
 * page, as _ring/writer.py does a Cursor's.
 *
 *     enter --> aiotrace_watcher_put, aiotrace_watcher_put ... --> limit(False), leave
 *
 * Invariant: everything under the lock; records that do not fit are counted.
 */
#include "stalls/stalls.h"

PyTypeObject *aiotrace_watcher_cursor_type;

void
aiotrace_watcher_put(WatcherCursor *cursor, uint64_t now, const void *payload, uint32_t size)
{
    uint32_t end;
    if (cursor->is_closed)
        return;
    char *place = reserve(&cursor->at, &now, size, &end);
    if (place == NULL) {
        cursor->dropped++;
        return;
    }
    memcpy(place, payload, size);
    commit(&cursor->at, now, end);
}

static PyObject *
cursor_change(WatcherCursor *self, const Py_buffer *view)
{
    Py_buffer old;
    uint64_t now = aiotrace_monotonic_ns();
    pthread_mutex_lock(&aiotrace_stalls.lock);
    old = self->view;
    memset(&self->view, 0, sizeof self->view);
    leave_page(&self->at);
    if (view != NULL) {
        self->view = *view;
        begin_page(&self->at, view->buf, (uint32_t)view->len, now);
    }
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    if (old.obj != NULL)
        PyBuffer_Release(&old);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cursor_enter_doc, "Begin an empty page: its header is written, its time is now.");

static PyObject *
cursor_enter(WatcherCursor *self, PyObject *page)
{
    Py_buffer view;
    if (PyObject_GetBuffer(page, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (view.len < 64 || view.len > AIOTRACE_PAGE_SIZE_MAX || (uintptr_t)view.buf % 8 != 0) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "a page has 64 bytes to 1 MiB and is aligned to 8");
        return NULL;
    }
    return cursor_change(self, &view);
}

PyDoc_STRVAR(cursor_leave_doc, "Have no page.");

static PyObject *
cursor_leave(WatcherCursor *self, PyObject *Py_UNUSED(ignored))
{
    return cursor_change(self, NULL);
}

PyDoc_STRVAR(cursor_limit_doc, "limit(open)\n--\n\nWhether records find room from now on; those that do not are counted.");

static PyObject *
cursor_limit(WatcherCursor *self, PyObject *argument)
{
    int is_open = PyObject_IsTrue(argument);
    if (is_open < 0)
        return NULL;
    pthread_mutex_lock(&aiotrace_stalls.lock);
    self->at.limit = 0;
    if (is_open)
        open_page(&self->at);
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cursor_close_doc, "From now on nothing is written, nor counted.");

static PyObject *
cursor_close(WatcherCursor *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&aiotrace_stalls.lock);
    self->is_closed = 1;
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cursor_state_doc,
             "Bytes of records on the page, time of the last one in ns, records written and records that found no room,\n"
             "as of one moment.");

static PyObject *
cursor_state(WatcherCursor *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&aiotrace_stalls.lock);
    uint32_t committed = committed_of(&self->at);
    uint64_t last = self->at.last, written = self->at.written, dropped = self->dropped;
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    return Py_BuildValue("IKKK", committed, (unsigned long long)last, (unsigned long long)written,
                         (unsigned long long)dropped);
}

PyDoc_STRVAR(cursor_fits_doc, "fits(size)\n--\n\nWhether a payload of `size` bytes has room, and a time extend.");

static PyObject *
cursor_fits(WatcherCursor *self, PyObject *argument)
{
    Py_ssize_t size = PyLong_AsSsize_t(argument);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&aiotrace_stalls.lock);
    int fits = has_room(&self->at, size);
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    return PyBool_FromLong(fits);
}

static PyObject *
cursor_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(keywords))
{
    return type->tp_alloc(type, 0);
}

static void
cursor_dealloc(WatcherCursor *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->view.obj != NULL)
        PyBuffer_Release(&self->view);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef cursor_methods[] = {
    {"enter", (PyCFunction)cursor_enter, METH_O, cursor_enter_doc},
    {"leave", (PyCFunction)cursor_leave, METH_NOARGS, cursor_leave_doc},
    {"limit", (PyCFunction)cursor_limit, METH_O, cursor_limit_doc},
    {"close", (PyCFunction)cursor_close, METH_NOARGS, cursor_close_doc},
    {"state", (PyCFunction)cursor_state, METH_NOARGS, cursor_state_doc},
    {"fits", (PyCFunction)cursor_fits, METH_O, cursor_fits_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(cursor_doc, "A place on a page for a thread that has no GIL.");

static PyType_Slot cursor_slots[] = {
    {Py_tp_doc, (void *)cursor_doc}, {Py_tp_new, cursor_new}, {Py_tp_dealloc, cursor_dealloc},
    {Py_tp_methods, cursor_methods}, {0, NULL},
};

static PyType_Spec cursor_spec = {"aiotrace._c.WatcherCursor", sizeof(WatcherCursor), 0, Py_TPFLAGS_DEFAULT,
                                  cursor_slots};

int
aiotrace_watcher_cursor_exec(PyObject *module)
{
    return aiotrace_add_type(module, &cursor_spec, &aiotrace_watcher_cursor_type, "WatcherCursor");
}
