/* A page of the watcher's own: a writer's place that a thread without the GIL writes to. _tracers/stall.py turns it, as
 * _ring/writer.py does a Cursor's.
 *
 *     enter --> stall_put, stall_put ... --> limit(False), leave
 *
 * The law: everything under the lock, and what finds no room is counted.
 */
#include "stall.h"

#define PAGE_HEADER 16
#define LOST_COUNT 8

PyTypeObject *stall_place_type;

void
stall_put(Place *place, uint64_t now, const void *payload, uint32_t size)
{
    if (place->is_closed)
        return;
    uint64_t delta = since(place->last, now);
    uint32_t head = delta > AIOTRACE_TIME_DELTA_MAX ? 12 : 4;
    if (room_of(place) < head + size) {
        place->dropped++;
        return;
    }
    uint32_t *words = (uint32_t *)(place->page + place->end);
    place->last += delta;
    if (delta > AIOTRACE_TIME_DELTA_MAX) {
        *words++ = AIOTRACE_TYPE_TIME_EXTEND | (uint32_t)(delta & AIOTRACE_TIME_DELTA_MAX) << AIOTRACE_TYPE_LEN_BITS;
        *words++ = (uint32_t)(delta >> AIOTRACE_TIME_DELTA_BITS);
        delta = 0;
    }
    *words++ = size >> 2 | (uint32_t)delta << AIOTRACE_TYPE_LEN_BITS;
    memcpy(words, payload, size);
    place->end += head + size;
    place->written++;
    __atomic_store_n((uint64_t *)(place->page + 8), (uint64_t)(place->end - PAGE_HEADER), __ATOMIC_RELEASE);
}

static PyObject *
place_change(Place *self, const Py_buffer *view)
{
    Py_buffer old;
    uint64_t now = aiotrace_monotonic_ns();
    pthread_mutex_lock(&stalls.lock);
    old = self->view;
    memset(&self->view, 0, sizeof self->view);
    self->page = NULL;
    self->page_size = self->end = self->limit = 0;
    self->last = 0;
    if (view != NULL) {
        self->view = *view;
        self->page = view->buf;
        self->page_size = (uint32_t)view->len;
        ((uint64_t *)self->page)[0] = self->last = now;
        ((uint64_t *)self->page)[1] = 0;
        self->end = PAGE_HEADER;
        self->limit = self->page_size - LOST_COUNT;
    }
    pthread_mutex_unlock(&stalls.lock);
    if (old.obj != NULL)
        PyBuffer_Release(&old);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(place_enter_doc, "Begin an empty page: its header is written, its time is now.");

static PyObject *
place_enter(Place *self, PyObject *page)
{
    Py_buffer view;
    if (PyObject_GetBuffer(page, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (view.len < 64 || view.len > 1 << 20 || (uintptr_t)view.buf % 8 != 0) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "a page has 64 bytes to 1 MiB and is aligned to 8");
        return NULL;
    }
    return place_change(self, &view);
}

PyDoc_STRVAR(place_leave_doc, "Have no page.");

static PyObject *
place_leave(Place *self, PyObject *Py_UNUSED(ignored))
{
    return place_change(self, NULL);
}

PyDoc_STRVAR(place_limit_doc, "limit(open)\n--\n\nWhether records find room from now on; those that do not are counted.");

static PyObject *
place_limit(Place *self, PyObject *argument)
{
    int is_open = PyObject_IsTrue(argument);
    if (is_open < 0)
        return NULL;
    pthread_mutex_lock(&stalls.lock);
    self->limit = is_open && self->page != NULL ? self->page_size - LOST_COUNT : 0;
    pthread_mutex_unlock(&stalls.lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(place_close_doc, "From now on nothing is written, nor counted.");

static PyObject *
place_close(Place *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&stalls.lock);
    self->is_closed = 1;
    pthread_mutex_unlock(&stalls.lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(place_state_doc,
             "Bytes of records on the page, time of the last one in ns, records written and records that found no room,\n"
             "as of one moment.");

static PyObject *
place_state(Place *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&stalls.lock);
    uint32_t committed = self->end < PAGE_HEADER ? 0 : self->end - PAGE_HEADER;
    uint64_t last = self->last, written = self->written, dropped = self->dropped;
    pthread_mutex_unlock(&stalls.lock);
    return Py_BuildValue("IKKK", committed, (unsigned long long)last, (unsigned long long)written,
                         (unsigned long long)dropped);
}

PyDoc_STRVAR(place_fits_doc, "fits(size)\n--\n\nWhether a payload of `size` bytes has room, and a time extend.");

static PyObject *
place_fits(Place *self, PyObject *argument)
{
    Py_ssize_t size = PyLong_AsSsize_t(argument);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&stalls.lock);
    int fits = size <= 1 << 20 && size + 16 <= (Py_ssize_t)room_of(self);
    pthread_mutex_unlock(&stalls.lock);
    return PyBool_FromLong(fits);
}

static PyObject *
place_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(keywords))
{
    return type->tp_alloc(type, 0);
}

static void
place_dealloc(Place *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->view.obj != NULL)
        PyBuffer_Release(&self->view);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef place_methods[] = {
    {"enter", (PyCFunction)place_enter, METH_O, place_enter_doc},
    {"leave", (PyCFunction)place_leave, METH_NOARGS, place_leave_doc},
    {"limit", (PyCFunction)place_limit, METH_O, place_limit_doc},
    {"close", (PyCFunction)place_close, METH_NOARGS, place_close_doc},
    {"state", (PyCFunction)place_state, METH_NOARGS, place_state_doc},
    {"fits", (PyCFunction)place_fits, METH_O, place_fits_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(place_doc, "A place on a page for a thread that has no GIL.");

static PyType_Slot place_slots[] = {
    {Py_tp_doc, (void *)place_doc}, {Py_tp_new, place_new}, {Py_tp_dealloc, place_dealloc},
    {Py_tp_methods, place_methods}, {0, NULL},
};

static PyType_Spec place_spec = {"aiotrace._c.StallPlace", sizeof(Place), 0, Py_TPFLAGS_DEFAULT, place_slots};

int
stall_place_exec(PyObject *module)
{
    return aiotrace_add_type(module, &place_spec, &stall_place_type, "StallPlace");
}
