/* A frame of the thread that runs; valid as long as what it calls does not return. */
#ifndef AIOTRACE_TASK_FRAMES_H
#define AIOTRACE_TASK_FRAMES_H

#pragma GCC visibility push(hidden)

typedef struct {
    PyObject *code; /* borrowed; NULL: there is no frame */
    int offset;     /* of the instruction that runs, as PyCode_Addr2Line takes it */
    void *own;
} Frame;

Frame innermost_frame(void);
Frame outer_frame(const Frame *frame);

#pragma GCC visibility pop

#endif
