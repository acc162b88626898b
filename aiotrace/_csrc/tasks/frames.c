/* The frames of the thread that runs, and of coroutines, as the interpreter has them: no object is
 * made of them.
 *
 * Their layout is of one version of CPython, and this is compiled for it: the one file that reads
 * CPython's internal headers.
 */
#define Py_BUILD_CORE 1

#include "tasks/frames.h"

#include "internal/pycore_frame.h"

#define DEPTH_MAX 64 /* coroutines that await each other, looked into */

static inline PyObject *
code_of_frame(_PyInterpreterFrame *frame)
{
#if PY_VERSION_HEX >= 0x030D0000
    return (PyObject *)_PyFrame_GetCode(frame);
#else
    return (PyObject *)frame->f_code;
#endif
}

HOT static Frame
complete_frame(_PyInterpreterFrame *frame)
{
    while (frame != NULL && _PyFrame_IsIncomplete(frame))
        frame = frame->previous;
    if (frame == NULL)
        return (Frame){NULL, 0, NULL};
    return (Frame){code_of_frame(frame), _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT), frame};
}

HOT Frame
aiotrace_innermost_frame(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return complete_frame(PyThreadState_Get()->current_frame);
#else
    return complete_frame(PyThreadState_Get()->cframe->current_frame);
#endif
}

HOT Frame
aiotrace_outer_frame(const Frame *frame)
{
    return complete_frame(((_PyInterpreterFrame *)frame->own)->previous);
}

static inline _PyInterpreterFrame *
frame_of(PyObject *coroutine)
{
    return (_PyInterpreterFrame *)((PyCoroObject *)coroutine)->cr_iframe;
}

/* What a coroutine of Python's that is suspended awaits, as cr_await gives it: borrowed, or NULL. */
static inline PyObject *
awaited_of(PyObject *coroutine)
{
    _PyInterpreterFrame *frame = frame_of(coroutine);
#if PY_VERSION_HEX >= 0x030D0000
    int awaits = ((PyCoroObject *)coroutine)->cr_frame_state == FRAME_SUSPENDED_YIELD_FROM;
#else
    int awaits = ((PyCoroObject *)coroutine)->cr_frame_state == FRAME_SUSPENDED &&
                 /* it continues with RESUME: 2 in a `yield from`, 3 in an `await` */
                 _Py_OPARG(frame->prev_instr[1]) >= 2;
#endif
    return awaits ? _PyFrame_StackPeek(frame) : NULL;
}

HOT int
aiotrace_find_innermost(PyObject *coroutine, PyObject **innermost, PyObject **outer)
{
    PyObject *next, *by = NULL;
    int depth = 0;
    if (unlikely(!PyCoro_CheckExact(coroutine)))
        return -1;
    while (depth < DEPTH_MAX && (next = awaited_of(coroutine)) != NULL && PyCoro_CheckExact(next)) {
        by = coroutine;
        coroutine = next;
        depth++;
    }
    *innermost = code_of_frame(frame_of(coroutine));
    if (by != NULL)
        *outer = code_of_frame(frame_of(by));
    return depth;
}

int
aiotrace_is_handling_cancellation(PyObject *coroutine)
{
    for (int depth = 0; depth <= DEPTH_MAX && coroutine != NULL && PyCoro_CheckExact(coroutine); depth++) {
        if (aiotrace_is_cancelled_error(((PyCoroObject *)coroutine)->cr_exc_state.exc_value))
            return 1;
        coroutine = awaited_of(coroutine);
    }
    return 0;
}
