/* The frames of the thread that runs, as the interpreter has them: no object is made of them.
 *
 * Their layout is of one version of CPython, and this is compiled for it: the one file that reads CPython's internal
 * headers.
 */
#define Py_BUILD_CORE 1

#include "aiotrace.h"

#include "internal/pycore_frame.h"

#include "task_frames.h"

static Frame
complete_frame(_PyInterpreterFrame *frame)
{
    while (frame != NULL && _PyFrame_IsIncomplete(frame))
        frame = frame->previous;
    if (frame == NULL)
        return (Frame){NULL, 0, NULL};
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *code = (PyObject *)_PyFrame_GetCode(frame);
#else
    PyObject *code = (PyObject *)frame->f_code;
#endif
    return (Frame){code, _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT), frame};
}

Frame
innermost_frame(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return complete_frame(PyThreadState_Get()->current_frame);
#else
    return complete_frame(PyThreadState_Get()->cframe->current_frame);
#endif
}

Frame
outer_frame(const Frame *frame)
{
    return complete_frame(((_PyInterpreterFrame *)frame->own)->previous);
}
