/* What the hooks call: a task is made ready, a step of it begins and ends; what becomes of its cancellation.
 *
 *     made_ready -> begin_known -> (it runs) -> end_step: task:step, and task:done if that was its end
 */
#include "task.h"

THREAD_LOCAL int is_preset;

/* What follows a step in the same call of asyncio's, as waking those who wait for the task, is the task's doing too. */
static THREAD_LOCAL struct {
    const PyObject *task; /* only to be compared */
    int32_t id;           /* 0: nobody's step ended just now */
} just_ended;

/* --- ready --------------------------------------------------------------------------------------------------- */

/* Who wakes a task from outside of any step: the task whose step ended just now, if its loop is still at it. */
static int32_t
find_waker(PyObject *loop)
{
    PyObject *current = current_tasks == NULL ? NULL : PyDict_GetItemWithError(current_tasks, loop);
    if (current == NULL || current != just_ended.task) {
        PyErr_Clear();
        just_ended.id = 0;
    }
    return just_ended.id;
}

/* A step of a task is scheduled in a loop, by what runs here. */
void
made_ready(Known *known, PyObject *loop)
{
    if (unlikely(known->state != TRACES))
        return;
    int32_t here = aiotrace_get_task();
    if (known->ready_ns == 0) { /* else its own step has noted it at its end */
        known->ready_ns = now_ns();
        known->waker = here == 0 && just_ended.id != 0 ? find_waker(loop) : here;
        if (unlikely(tells_switches))
            tell_waking(known);
    }
    if (!IS_OFF(READY)) {
        aiotrace_set_task(known->waker);
        if (!aiotrace_event_numbers(events[READY], known->ready_ns, &known->id))
            EMIT(READY, PyLong_FromLong(known->id));
        aiotrace_set_task(here);
    }
}

/* --- the begin ----------------------------------------------------------------------------------------------- */

void
begin_known(Step *step, Known *known)
{
    step->known = (Known *)Py_NewRef(known);
    step->ready_ns = known->ready_ns;
    step->waker = known->waker;
    step->previous = aiotrace_get_task();
    step->is_delivered = 0;
    known->ready_ns = 0;
    known->waker = 0;
    known->has_run = 1;
    step->is_watched = 0;
    step->made.is_made = 0;
    if (unlikely(known->state == SILENT)) {
        aiotrace_set_task(0);
        return;
    }
    aiotrace_set_task(known->id);
    if (unlikely(known->name != NULL || (!known->is_named && commands_left > 0)))
        tell_name(known);
    step->began = now_ns();
    if (unlikely(tells_switches) && !(making != NULL && making->task != NULL)) /* else it has run: task_make */
        switch_in(&step->made, step->previous, known->id, comm_of(known), step->began);
    step->is_watched = (char)begin_watched(known->id, step->began);
}

/* --- cancellation -------------------------------------------------------------------------------------------- */

/* The requests to cancel a task that nobody took back. */
long
count_cancels(PyObject *task)
{
    PyObject *value = read_door(&door_cancelling, task, is_fast(task));
    if (value == NULL)
        return 0;
    long count = PyLong_Check(value) ? PyLong_AsLong(value) : 0;
    Py_DECREF(value);
    if (count == -1)
        PyErr_Clear();
    return count;
}

void
tell_delivered(Step *step)
{
    step->is_delivered = 1;
    step->known->is_cancelled = 1;
    step->known->is_swallowed = 0;
    if (!IS_OFF(DELIVERED))
        EMIT(DELIVERED, PyLong_FromLong(step->known->id));
}

static PyObject *
line_of(Known *known)
{
    PyObject *line = PyObject_CallOneArg(find_line, known->inner);
    if (line == NULL) {
        PyErr_WriteUnraisable(find_line);
        line = text_of(&unknown_name);
    }
    return line;
}

/* The same, or the whole coroutine, if it has ended and is at no line any more. */
static PyObject *
place_of(Known *known, int is_done)
{
    if (!is_done)
        return line_of(known);
    return Py_NewRef(known->coroutine != NULL ? known->coroutine : unknown_name.text);
}

/* What became of a cancellation of asyncio's that was delivered: at the end of this step, and of later ones until it is
 * clear. */
static void
tell_outcome(Step *step, const Outcome *outcome, int is_handling)
{
    Known *known = step->known;
    int is_done = outcome->yielded == NULL;
    if (is_done && outcome->is_cancelled)
        return;
    PyObject *task = referent(known->ref);
    long cancels = task != NULL ? count_cancels(task) : 0;
    if (step->is_delivered && !IS_OFF(CAUGHT))
        EMIT(CAUGHT, PyLong_FromLong(known->id), place_of(known, is_done));
    if (is_handling && !is_done)
        return;
    if (cancels > 0 && !(is_done && known->is_swallowed) && !IS_OFF(SWALLOWED))
        EMIT(SWALLOWED, PyLong_FromLong(known->id), place_of(known, is_done));
    known->is_cancelled = 0;
    known->is_swallowed = cancels > 0;
}

/* The same on trio. Only now is it delivered: every sleep of trio's ends by a cancellation that the sleep itself takes
 * back. */
static void
tell_trio_outcome(Step *step, const Outcome *outcome, int is_handling)
{
    Known *known = step->known;
    if (!(outcome->yielded == NULL ? outcome->is_cancelled : is_handling))
        return;
    if (!known->is_cancelled && !IS_OFF(DELIVERED))
        EMIT(DELIVERED, PyLong_FromLong(known->id));
    known->is_cancelled = 1;
    if (outcome->yielded != NULL && !IS_OFF(CAUGHT))
        EMIT(CAUGHT, PyLong_FromLong(known->id), line_of(known));
}

/* --- the end ------------------------------------------------------------------------------------------------- */

/* What task:step holds; the order and the padding of _tracers/task.py's definition. */
typedef struct {
    uint64_t ready_ns, duration_ns, awaited;
    int32_t waker;
} __attribute__((packed)) StepRecord;

/* What a task waits for now. `depth`, `innermost`, `outer`: see find_innermost. */
static Name
name_awaited(const Outcome *outcome, int depth, PyObject *innermost, PyObject *outer)
{
    if (outcome->yielded == NULL)
        return name_done;
    Name name = depth >= 0 ? find_name(code_of(innermost), 0) : unknown_name;
    if (name.flags & IS_TRAP && --depth > 0)
        name = find_name(code_of(outer), 0);
    if (depth > 0)
        return name;
    return outcome->yielded == Py_None ? name_yield : find_name((PyObject *)Py_TYPE(outcome->yielded), 0);
}

static void
record_step(const Step *step, const Outcome *outcome, uint64_t now, int *is_handling)
{
    Known *known = step->known;
    PyObject *innermost = NULL, *outer = NULL, *code = NULL;
    uint64_t key = name_done.key;
    int depth = 0;
    if (likely(outcome->yielded != NULL)) {
        depth = find_innermost(known->inner, &innermost, &outer, is_handling);
        code = depth > 0 ? code_of(innermost) : NULL;
        if (likely(code != NULL && code == known->awaited_code)) { /* the names hold it */
            key = known->awaited_key;
        }
        else {
            Name name = name_awaited(outcome, depth, innermost, outer);
            key = name.key;
            known->awaited_code = name.flags & IS_TRAP || name.object != code ? NULL : code;
            known->awaited_key = key;
        }
    }
    StepRecord record = {step->ready_ns, now > step->began ? now - step->began : 0, key, step->waker};
    if (unlikely(!aiotrace_event_numbers(events[STEP], now, &record))) {
        Name awaited = name_awaited(outcome, depth, innermost, outer);
        EMIT(STEP, PyLong_FromUnsignedLongLong(record.ready_ns), PyLong_FromUnsignedLongLong(record.duration_ns),
             text_of(&awaited), PyLong_FromLong(record.waker));
    }
}

static void
tell_done(Known *known, const Outcome *outcome)
{
    Name exception = name_nothing;
    const Name *result = outcome->is_cancelled ? &name_cancelled : outcome->error != NULL ? &name_raised : &name_returned;
    if (result == &name_raised)
        exception = find_name((PyObject *)Py_TYPE(outcome->error), 0);
    tell_end(known->id, result, &exception);
}

static void
leave(Step *step, const Outcome *outcome)
{
    if (unlikely(step->made.is_made))
        switch_out(&step->made, step->known->id, step->known->comm, state_after(outcome), now_ns());
    aiotrace_set_task(step->previous);
    Py_DECREF(step->known);
}

/* A step has ended, with no exception pending. */
void
end_step(Step *step, const Outcome *outcome)
{
    Known *known = step->known;
    end_watched(step->is_watched);
    if (unlikely(known->state != TRACES)) { /* ours; or tracing ended meanwhile */
        if (known->state == SILENT && outcome->yielded == NULL)
            forget_task(known);
        leave(step, outcome);
        return;
    }
    uint64_t now = now_ns();
    int is_handling = 0;
    if (likely(!IS_OFF(STEP)) || known->is_cancelled || step->is_delivered)
        record_step(step, outcome, now, &is_handling);
    if (known->runtime == ON_ASYNCIO) {
        if (unlikely(known->is_cancelled || (outcome->yielded == NULL && known->cancels > 0)))
            tell_outcome(step, outcome, is_handling);
        if (outcome->yielded == Py_None) { /* and is ready at once */
            known->ready_ns = now;
            known->waker = known->id;
        }
        just_ended.task = referent(known->ref);
        just_ended.id = known->id;
    }
    else if (unlikely(step->is_delivered)) {
        tell_trio_outcome(step, outcome, is_handling);
    }
    if (outcome->yielded == NULL) {
        tell_done(known, outcome);
        forget_task(known);
        if (known->runtime == ON_ASYNCIO)
            unwrap_task(known);
    }
    if (unlikely(now >= round_due))
        go_on_with_round(now);
    leave(step, outcome);
}
