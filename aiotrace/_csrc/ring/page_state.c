/* A page's state, changed by compare-and-swap, so that two processes can share one arena.
 *
 *     writer's process                                      reader's process
 *     FREE -> FILLING     acquires what (3) released
 *     records, then the descriptor's words
 *     FILLING -> FULL     releases (1) ------------------>  FULL -> IN_FLIGHT   acquires (1)
 *     FULL -> FILLING     the overrun: one of the two ----  or FULL -> IN_FLIGHT: exactly one wins
 *                                              <----------  IN_FLIGHT -> FREE   releases (3), after its last read
 *
 * The pairs: a seal (1) with the take or the overrun that wins the page; a give-back (3) with the
 * writer's next take. A swap that fails changes nothing and promises nothing. The reader finds
 * pages by plain loads, which are hints: its second read is ordered after the first by `fence`.
 * models/handover.pml is the model of this, for spin.
 */
#include "ring/page_state.h"

#include <stdatomic.h>

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock in this process would not keep the other process out");

static const char *const state_names[4] = {"free", "filling", "full", "in flight"};

PyDoc_STRVAR(page_transition_doc,
"page_transition(descriptors, page, old, new, /)\n"
"--\n\n"
"Change the state of a page from `old` to `new`, in one step for all processes that have the memory mapped.\n\n"
"descriptors: a writable memoryview of u64. Returns False, without effect, if the page is not in state `old`. Raises\n"
"AssertionError for a change that no page makes.");

static PyObject *
page_transition(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_Format(PyExc_TypeError, "page_transition takes 4 arguments, not %zd", count);
        return NULL;
    }
    Py_ssize_t page = PyLong_AsSsize_t(arguments[1]);
    if (page == -1 && PyErr_Occurred())
        return NULL;
    unsigned long old = PyLong_AsUnsignedLong(arguments[2]), new = PyLong_AsUnsignedLong(arguments[3]);
    if (PyErr_Occurred())
        return NULL;

    if (old > AIOTRACE_IN_FLIGHT || new > AIOTRACE_IN_FLIGHT) {
        PyErr_SetString(PyExc_ValueError, "not a state of a page");
        return NULL;
    }
    if (!aiotrace_transitions[old][new]) {
        PyErr_Format(PyExc_AssertionError, "%s -> %s", state_names[old], state_names[new]);
        return NULL;
    }

    Py_buffer view;
    if (PyObject_GetBuffer(arguments[0], &view, PyBUF_WRITABLE) < 0)
        return NULL;
    uint64_t *words = aiotrace_descriptor(&view, page);
    PyObject *changed = NULL;
    if (words != NULL)
        changed = PyBool_FromLong(aiotrace_page_transition(words, (unsigned)old, (unsigned)new));
    PyBuffer_Release(&view);
    return changed;
}

PyDoc_STRVAR(fence_doc,
"fence()\n"
"--\n\n"
"What is read after this is read after what was read before it.");

static PyObject *
fence(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    atomic_thread_fence(memory_order_seq_cst);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"page_transition", (PyCFunction)(void (*)(void))page_transition, METH_FASTCALL, page_transition_doc},
    {"fence", fence, METH_NOARGS, fence_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_page_state_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
