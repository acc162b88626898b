/* The state that all files of this folder share: what Python gave at the start, and which events
 * are recorded. */
#include "tasks/tasks.h"

PyObject *aiotrace_task_events[EVENTS];
HOT_DATA Kind aiotrace_task_kinds[EVENTS];

int
aiotrace_recheck_off(int event)
{
    if (!aiotrace_event_is_off(aiotrace_task_events[event]))
        return 0;
    aiotrace_task_kinds[event].off_in = aiotrace_epoch;
    return 1;
}

int
aiotrace_recheck_plain(int event)
{
    if (*aiotrace_event_plain_epoch(aiotrace_task_events[event]) != aiotrace_epoch)
        return 0;
    aiotrace_task_kinds[event].plain_in = aiotrace_epoch;
    return 1;
}

PyObject *aiotrace_describe;     /* (code or type, line) -> (text, key, flags) */
PyObject *aiotrace_name_command; /* (pid, name) */
PyObject *aiotrace_find_line;    /* (task) -> text: where it is suspended */
PyObject *aiotrace_find_inner;   /* (coroutine) -> the coroutine that a library's coroutine wraps, or None */
PyObject *aiotrace_report;       /* (handle, exception): what events.Handle does of an exception */
PyObject *aiotrace_current_tasks; /* loop -> the task whose step runs, as asyncio has it */
HOT_DATA PyTypeObject *aiotrace_task_type; /* _asyncio.Task */
PyObject *aiotrace_cancelled_error, *aiotrace_trio_cancelled;
HOT_DATA PyTypeObject *aiotrace_trio_error; /* outcome.Error */

HOT_DATA int aiotrace_traces_tasks;
