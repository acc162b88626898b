/* What became of a request to cancel a task: delivered, caught, swallowed.
 *
 *     asyncio   throw(CancelledError): delivered -> end of the step: caught, if it did not end the task -> ... -> swallowed,
 *               when no handler runs any more and the request was not taken back
 *     trio      end of the step: delivered, and caught, if a handler of the cancellation runs
 */
#include "tasks/frames.h"

long
aiotrace_count_cancels(PyObject *task)
{
    PyObject *value = read_field(&aiotrace_reader_cancelling, task, is_c_task(task));
    if (value == NULL)
        return 0;
    long count = PyLong_Check(value) ? PyLong_AsLong(value) : 0;
    Py_DECREF(value);
    if (count == -1)
        PyErr_Clear();
    return count;
}

void
aiotrace_emit_delivered(Step *step)
{
    step->is_delivered = 1;
    step->traced->is_cancelled = 1;
    step->traced->plain_in = 0;
    step->traced->is_swallowed = 0;
    if (!is_off(DELIVERED))
        EMIT(DELIVERED, PyLong_FromLong(step->traced->id));
}

static PyObject *
line_of(TracedTask *traced)
{
    PyObject *line = PyObject_CallOneArg(aiotrace_find_line, traced->inner);
    if (line == NULL) {
        PyErr_WriteUnraisable(aiotrace_find_line);
        line = aiotrace_text_of(&aiotrace_unknown_name);
    }
    return line;
}

/* The same, or the whole coroutine, if it has ended and is at no line any more. */
static PyObject *
place_of(TracedTask *traced, int is_done)
{
    if (!is_done)
        return line_of(traced);
    return Py_NewRef(traced->coroutine != NULL ? traced->coroutine : aiotrace_unknown_name.text);
}

static int
is_handling_one(const Step *step, const Outcome *outcome)
{
    return outcome->yielded != NULL && aiotrace_is_handling_cancellation(step->traced->inner);
}

/* asyncio: record what became of a delivered cancellation, at the end of this step and of later
 * ones until it is clear. */
void
aiotrace_emit_cancel_outcome(Step *step, const Outcome *outcome)
{
    TracedTask *traced = step->traced;
    int is_done = outcome->yielded == NULL, is_handling = is_handling_one(step, outcome);
    if (is_done && outcome->is_cancelled)
        return;
    PyObject *task = referent(traced->ref);
    long cancels = task != NULL ? aiotrace_count_cancels(task) : 0;
    if (step->is_delivered && !is_off(CAUGHT))
        EMIT(CAUGHT, PyLong_FromLong(traced->id), place_of(traced, is_done));
    if (is_handling)
        return;
    if (cancels > 0 && !(is_done && traced->is_swallowed) && !is_off(SWALLOWED))
        EMIT(SWALLOWED, PyLong_FromLong(traced->id), place_of(traced, is_done));
    traced->is_cancelled = 0;
    traced->is_swallowed = cancels > 0;
}

/* trio: only now is it delivered, as every sleep ends by a cancellation that the sleep itself
 * catches. */
void
aiotrace_emit_trio_outcome(Step *step, const Outcome *outcome)
{
    TracedTask *traced = step->traced;
    if (!(outcome->yielded == NULL ? outcome->is_cancelled : is_handling_one(step, outcome)))
        return;
    if (!traced->is_cancelled && !is_off(DELIVERED))
        EMIT(DELIVERED, PyLong_FromLong(traced->id));
    traced->is_cancelled = 1;
    if (outcome->yielded != NULL && !is_off(CAUGHT))
        EMIT(CAUGHT, PyLong_FromLong(traced->id), line_of(traced));
}

int
aiotrace_is_cancelled_error(PyObject *error)
{
    PyObject *types[] = {aiotrace_cancelled_error, aiotrace_trio_cancelled};
    for (int depth = 0; error != NULL && error != Py_None && depth < 8; depth++) {
        for (int i = 0; i < 2; i++)
            if (types[i] != NULL && PyObject_TypeCheck(error, (PyTypeObject *)types[i]))
                return 1;
        if (!PyExceptionInstance_Check(error))
            return 0;
        error = ((PyBaseExceptionObject *)error)->context;
    }
    return 0;
}
