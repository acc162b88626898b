/* A frame of the thread that runs; valid as long as what it calls does not return. And what a
 * suspended coroutine is in. */
#ifndef AIOTRACE_TASK_FRAMES_H
#define AIOTRACE_TASK_FRAMES_H

#include "tasks/tasks.h"

#pragma GCC visibility push(hidden)

typedef struct {
    PyObject *code; /* borrowed; NULL: there is no frame */
    int offset;     /* of the instruction that runs, as PyCode_Addr2Line takes it */
    void *own;
} Frame;

Frame aiotrace_innermost_frame(void);
Frame aiotrace_outer_frame(const Frame *frame);

/* Find out what a suspended coroutine waits in: the code of the innermost that it awaits, and of
 * who awaits that, if that is another. Borrowed of it.
 *
 * Returns how deep it lies, of which 0 is the coroutine itself; -1: it is not a Python coroutine. */
int aiotrace_find_innermost(PyObject *coroutine, PyObject **innermost, PyObject **outer);

/* Whether a suspended coroutine, or one that it awaits, is handling a cancellation just now. */
int aiotrace_is_handling_cancellation(PyObject *coroutine);

#pragma GCC visibility pop

#endif
