/* The stack sampler: a Python thread that waits for the GIL when the watcher requests it, and reads
 * the stack of a step that was noticed.
 *
 *     no GIL: waits for work --> waits for the GIL (how long: see causes.c) --> GIL: a pending report, and its stack
 *
 * Invariants: it never holds `lock` while it waits for the GIL. The step is compared and its frames
 * are read in one stretch in which no other thread can have the GIL, and no Python code runs.
 */
#include "stalls/stalls.h"

#include <sys/syscall.h>
#include <unistd.h>

#define FRAMES_MAX 256 /* read of a stack; aiotrace's own are left out later */

/* The frames of a thread that has a step, innermost first: a list of (code, line), or NULL with an
 * exception. The collector rests meanwhile, so no Python code runs, and no other thread has the
 * GIL. */
static PyObject *
read_frames(PyThreadState *state)
{
    int was_enabled = PyGC_Disable();
    PyObject *found = PyList_New(0);
    PyFrameObject *frame = found == NULL ? NULL : PyThreadState_GetFrame(state);
    while (frame != NULL && PyList_GET_SIZE(found) < FRAMES_MAX) {
        PyObject *pair = Py_BuildValue("Ni", PyFrame_GetCode(frame), PyFrame_GetLineNumber(frame));
        if (pair == NULL || PyList_Append(found, pair) < 0) {
            Py_XDECREF(pair);
            Py_CLEAR(found);
            break;
        }
        Py_DECREF(pair);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    if (was_enabled)
        PyGC_Enable();
    return found;
}

/* Wait without the GIL until there is work, and then for the GIL. Returns whether this watch is
 * still running. */
static int
wait_for_work(uint64_t mine)
{
    PyThreadState *state = PyEval_SaveThread();
    pthread_mutex_lock(&aiotrace_stalls.lock);
    while (!aiotrace_stalls.has_work && !aiotrace_stalls.is_stopping && aiotrace_stalls.run == mine)
        pthread_cond_wait(&aiotrace_stalls.work, &aiotrace_stalls.lock);
    int goes_on = !aiotrace_stalls.is_stopping && aiotrace_stalls.run == mine;
    uint64_t now = aiotrace_monotonic_ns();
    if (goes_on) {
        aiotrace_stalls.sampler_waits = 1;
        for (Slot *slot = aiotrace_stalls.slots; slot != NULL; slot = slot->next)
            if (slot->probed)
                aiotrace_stall_begin_waiting(slot, now);
    }
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    PyEval_RestoreThread(state); /* at the end of the interpreter this thread ends here, and holds nothing */
    pthread_mutex_lock(&aiotrace_stalls.lock);
    if (goes_on && aiotrace_stalls.run == mine) {
        now = aiotrace_monotonic_ns();
        aiotrace_stalls.sampler_waits = 0;
        aiotrace_stalls.has_work = 0;
        for (Slot *slot = aiotrace_stalls.slots; slot != NULL; slot = slot->next) {
            if (slot->probed == slot->sampled)
                slot->waits = aiotrace_stall_waits_until(slot, now);
            slot->waiting.ns = slot->probed = 0;
        }
    }
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    return goes_on;
}

PyDoc_STRVAR(stall_next_doc,
             "stall_next(run)\n--\n\n"
             "Wait for what needs the GIL: a stall to report, (thread, task, began_ns, lasted_ns, cause, is_written,\n"
             "gil_ns, [(code, line), ...] or None); (): the pages need to be checked. None: this watch has ended.\n\n"
             "Until the next call the records of the calling thread carry the pid of the stalled task or thread.");

static PyObject *
stall_next(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long mine = PyLong_AsUnsignedLongLong(argument);
    if (mine == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    set_task(0);
    pthread_mutex_lock(&aiotrace_stalls.lock);
    aiotrace_stalls.sampler = (int32_t)syscall(SYS_gettid);
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    for (int is_first = 1;; is_first = 0) {
        Slot found = {.pending_report.step = 0};
        int is_short = 0;
        pthread_mutex_lock(&aiotrace_stalls.lock);
        for (int i = 0; i < aiotrace_stalls.cursors_count; i++) {
            const WatcherCursor *cursor = aiotrace_stalls.cursors[i];
            is_short |= !cursor->is_closed && room_of(cursor) < cursor->at.page_size / 4;
        }
        for (Slot *slot = aiotrace_stalls.slots; slot != NULL && !found.pending_report.step; slot = slot->next) {
            if (slot->pending_report.step) {
                found = *slot;
                slot->pending_report.step = 0;
            }
        }
        pthread_mutex_unlock(&aiotrace_stalls.lock);
        if (found.pending_report.step) {
            /* Only who has the GIL ends a step, and we have it. */
            int lasts = !found.is_free && found.sequence == found.pending_report.step;
            PyObject *frames = lasts ? read_frames(found.state) : Py_NewRef(Py_None);
            if (frames == NULL)
                return NULL;
            set_task(found.pending_report.task ? found.pending_report.task : found.thread);
            return Py_BuildValue("iiKKOiKN", (int)found.thread, (int)found.pending_report.task,
                                 (unsigned long long)found.pending_report.began,
                                 (unsigned long long)found.pending_report.lasted,
                                 aiotrace_stall_causes[found.pending_report.cause].text,
                                 found.pending_report.is_written,
                                 (unsigned long long)found.waits.longest_ns, frames);
        }
        if (is_short && !is_first)
            return PyTuple_New(0);
        if (!wait_for_work(mine))
            Py_RETURN_NONE;
    }
}

static PyMethodDef functions[] = {
    {"stall_next", stall_next, METH_O, stall_next_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_stack_sampler_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
