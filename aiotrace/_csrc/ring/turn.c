/* The turn of a page in the common case, in one step: the full one goes into the ring, a free one
 * to the writer.
 *
 *     filling --seal--> full, last in the ring
 *     free, first in the pool --take--> filling, this writer's: nothing on it, its CHECK set last
 *
 * Invariant: if there is no page in the pool, or one whose memory has not been allocated yet,
 * nothing changes, and _ring/page_cycle.py handles the turn. The caller holds the guard. No Python
 * code runs in here, so a signal handler never sees half of it.
 */
#include "common/crc32.h"
#include "ring/page_state.h"

static PyObject *append; /* "append", of the ring, a deque; written once, at import */

/* Give an empty page to this writer. `place`: its memory. */
static void
take(uint64_t *words, unsigned char *place, uint64_t writer, uint64_t sequence, uint64_t first_event)
{
    memset(place + 8, 0, 8); /* commit: after a kill, a recovery must not take old events for this writer's */
    aiotrace_page_transition(words, AIOTRACE_FREE, AIOTRACE_FILLING);
    words[AIOTRACE_TAKES]++;
    const uint64_t identity[3] = {writer, sequence, first_event};
    memcpy(words + AIOTRACE_WRITER, identity, sizeof identity);
    aiotrace_empty(words);
    uint64_t check = aiotrace_crc32(0, (const unsigned char *)identity, sizeof identity);
    __atomic_store_n(words + AIOTRACE_CHECK, check, __ATOMIC_RELEASE);
}

PyDoc_STRVAR(turn_page_doc,
"turn_page(descriptors, memory, first, page_size, full, ring, free, writer, sequence, first_event, /)\n"
"--\n\n"
"Seal page `full`, append it to the deque `ring`, and take the last of the list `free` for the writer.\n\n"
"descriptors: writable u64 words; memory: the writable arena, in which page 0 begins at byte `first`.\n"
"Returns the page that was taken, or None, without effect, if this is not the common case.");

static PyObject *
turn_page(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer descriptors, memory;
    Py_ssize_t first, page_size, full;
    unsigned long long writer, sequence, first_event;
    PyObject *ring, *pool, *taken = NULL;
    if (!PyArg_ParseTuple(arguments, "w*w*nnnOO!KKK:turn_page", &descriptors, &memory, &first, &page_size, &full, &ring,
                          &PyList_Type, &pool, &writer, &sequence, &first_event))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(pool);
    PyObject *page = count ? PyList_GET_ITEM(pool, count - 1) : NULL;
    Py_ssize_t index = page == NULL ? 0 : PyLong_AsSsize_t(page);
    uint64_t *old = PyErr_Occurred() ? NULL : aiotrace_descriptor(&descriptors, full);
    uint64_t *new = old == NULL ? NULL : aiotrace_descriptor(&descriptors, index);
    Py_ssize_t offset = first + index * page_size;
    if (new == NULL)
        goto done;
    if (page == NULL || !new[AIOTRACE_TAKES] || new[AIOTRACE_STATE] != AIOTRACE_FREE || offset < 0 ||
        offset + page_size > memory.len ||
        !aiotrace_page_transition(old, AIOTRACE_FILLING, AIOTRACE_FULL)) {
        taken = Py_NewRef(Py_None);
        goto done;
    }
    PyObject *number = PyLong_FromSsize_t(full);
    PyObject *appended = number == NULL ? NULL : PyObject_CallMethodOneArg(ring, append, number);
    Py_XDECREF(number);
    if (appended == NULL)
        goto done; /* full by its descriptor: `recover` puts it there */
    Py_DECREF(appended);
    taken = Py_NewRef(page);
    if (PyList_SetSlice(pool, count - 1, count, NULL) < 0)
        Py_CLEAR(taken);
    else
        take(new, (unsigned char *)memory.buf + offset, writer, sequence, first_event);
done:
    PyBuffer_Release(&memory);
    PyBuffer_Release(&descriptors);
    return taken;
}

static PyMethodDef functions[] = {
    {"turn_page", turn_page, METH_VARARGS, turn_page_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_turn_exec(PyObject *module)
{
    if (append == NULL && (append = PyUnicode_InternFromString("append")) == NULL)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
