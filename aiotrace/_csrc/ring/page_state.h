/* The state of a page: the word of its descriptor that says who owns it, and the only function that
 * changes it.
 *
 *     FREE -> FILLING -> FULL -> IN_FLIGHT -> FREE      page_state.c says how this hands pages to another process
 *
 * The other words of a descriptor belong to the owner.
 */
#ifndef AIOTRACE_PAGE_STATE_H
#define AIOTRACE_PAGE_STATE_H

#include "common/common.h"

#include <assert.h>

/* Which state may follow which (row: before; column: after); _ring/state.py's TRANSITIONS. */
static const char aiotrace_transitions[4][4] = {
    /*                    FREE FILLING FULL IN_FLIGHT */
    [AIOTRACE_FREE]      = {0,   1,     0,   0},
    [AIOTRACE_FILLING]   = {1,   0,     1,   0},
    [AIOTRACE_FULL]      = {1,   1,     0,   1},
    [AIOTRACE_IN_FLIGHT] = {1,   0,     0,   0},
};

/* Change the state in a descriptor, in one step for all processes that have the arena mapped.
 * Returns 0, without effect, if it is not `old`. */
static inline int
aiotrace_page_transition(uint64_t *words, unsigned old, unsigned new)
{
    assert(old < 4 && new < 4 && aiotrace_transitions[old][new]);
    uint64_t expected = old;
    return __atomic_compare_exchange_n(words + AIOTRACE_STATE, &expected, new, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* The descriptor of a page, or NULL with an exception set. */
static inline uint64_t *
aiotrace_descriptor(const Py_buffer *descriptors, Py_ssize_t page)
{
    if (page < 0 || page >= descriptors->len / (AIOTRACE_DESCRIPTOR_WORDS * 8)) {
        PyErr_Format(PyExc_IndexError, "page index %zd out of range", page);
        return NULL;
    }
    return (uint64_t *)descriptors->buf + page * AIOTRACE_DESCRIPTOR_WORDS;
}

/* Reset the words that count what is on the page and who holds it. */
static inline void
aiotrace_empty(uint64_t *words)
{
    memset(words + AIOTRACE_EVENTS, 0, (AIOTRACE_DELIVERED + 1 - AIOTRACE_EVENTS) * 8);
}

#endif
