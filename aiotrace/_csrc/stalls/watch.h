/* The interface of this family to the task tracer, which reports here when steps begin and end
 * (steps.c). tasks/ includes stalls/, never the other way round. */
#ifndef AIOTRACE_WATCH_H
#define AIOTRACE_WATCH_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

/* Whether the watch runs. Written by start_stop.c, with the GIL held. */
extern int aiotrace_is_watched;

/* A step begins, of a task (or 0) and at that time (ns; 0: now). Returns whether it is watched:
 * then its thread calls `aiotrace_watch_end` at its end, before anything else. */
int aiotrace_watch_begin(int32_t task, uint64_t began);
void aiotrace_watch_end(void);

/* Whether the calling thread is one of aiotrace's own. */
int aiotrace_thread_is_internal(void);

#pragma GCC visibility pop

#endif
