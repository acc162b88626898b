/* page_state.c: a page's state, changed by compare-and-swap, so that two processes can have one arena between them.
 *
 *     writer's process                                      reader's process
 *     FREE -> FILLING     acquires what (3) released
 *     records, then the descriptor's words
 *     FILLING -> FULL     releases (1) ------------------>  FULL -> IN_FLIGHT   acquires (1)
 *     FULL -> FILLING     the overrun: one of the two ----  or FULL -> IN_FLIGHT: exactly one wins
 *                                              <----------  IN_FLIGHT -> FREE   releases (3), after its last look
 *
 * The pairs: a seal (1) with the take or the overrun that wins the page; a give-back (3) with the writer's next take.
 * A swap that fails changes nothing and promises nothing. The reader finds pages by plain loads, which are hints: what it
 * found in its second look is ordered after the first by `fence`. models/handover.pml is this, for spin.
 */
#include "common/common.h"

#include <stdatomic.h>

_Static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "an atomic word is the word");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock in this process would not hold the other one back");

int
aiotrace_compare_and_swap(uint64_t *word, uint64_t old, uint64_t new)
{
    return atomic_compare_exchange_strong_explicit(
        (_Atomic uint64_t *)word, &old, new, memory_order_acq_rel, memory_order_acquire);
}

PyDoc_STRVAR(compare_and_swap_doc,
"compare_and_swap(words, index, old, new, /)\n"
"--\n\n"
"Let words[index] be `new` if it is `old`, in one step for all processes that have the memory mapped.\n\n"
"Returns whether it was. `words` is a writable memoryview of u64.");

static PyObject *
compare_and_swap(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_Format(PyExc_TypeError, "compare_and_swap takes 4 arguments, not %zd", count);
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(arguments[1]);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    uint64_t old = PyLong_AsUnsignedLongLong(arguments[2]);
    if (old == UINT64_MAX && PyErr_Occurred())
        return NULL;
    uint64_t new = PyLong_AsUnsignedLongLong(arguments[3]);
    if (new == UINT64_MAX && PyErr_Occurred())
        return NULL;
    Py_buffer view;
    if (PyObject_GetBuffer(arguments[0], &view, PyBUF_WRITABLE) < 0)
        return NULL;
    PyObject *swapped = NULL;
    if (index < 0 || index >= view.len / 8 || (uintptr_t)view.buf % 8)
        PyErr_Format(PyExc_IndexError, "word %zd of %zd bytes that begin at a multiple of 8", index, view.len);
    else
        swapped = PyBool_FromLong(aiotrace_compare_and_swap((uint64_t *)view.buf + index, old, new));
    PyBuffer_Release(&view);
    return swapped;
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
    {"compare_and_swap", (PyCFunction)(void (*)(void))compare_and_swap, METH_FASTCALL, compare_and_swap_doc},
    {"fence", fence, METH_NOARGS, fence_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_page_state_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
