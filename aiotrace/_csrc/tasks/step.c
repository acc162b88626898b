/* What the hooks call: a task is made ready, a step of it begins and ends; what becomes of its cancellation.
 *
 *     made_ready -> begin_known -> (it runs) -> end_step: task:step, and task:done if that was its end
 *
 * Nearly all steps are plain: nothing but a record is due at their end. `send_step` does those in one stretch, with what
 * it has to remember in registers, and hands the others over. Whether the next step of a task will be plain is found out
 * when it is made, and at the end of one that is not; that stands until something happens to the task, or to all of them.
 */
#include "tasks/frames.h"

HOT_DATA uint32_t plain_round = 1;
THREAD_LOCAL int is_preset;
uint64_t steps_hooked[2];

/* What follows a step in the same call of asyncio's, as waking those who wait for the task, is the task's doing too. */
static THREAD_LOCAL struct {
    const PyObject *task; /* only to be compared */
    int32_t id;           /* 0: nobody's step ended just now */
} just_ended;

/* --- ready --------------------------------------------------------------------------------------------------- */

/* Who wakes a task from outside of any step: the task whose step ended just now, if its loop is still at it. */
HOT static int32_t
find_waker(PyObject *loop)
{
    PyObject *current = current_tasks == NULL ? NULL : PyDict_GetItemWithError(current_tasks, loop);
    if (current == NULL || current != just_ended.task) {
        PyErr_Clear();
        just_ended.id = 0;
    }
    return just_ended.id;
}

/* A step of a task is scheduled in a loop, by what runs here, which is known now; or everybody is to know of it. */
HOT void
tell_ready(Known *known, PyObject *loop)
{
    if (unlikely(known->state != TRACES))
        return;
    int32_t here = aiotrace_task;
    if (known->ready_ns == 0) { /* else its own step has noted it at its end */
        known->ready_ns = task_clock();
        known->waker = here == 0 && just_ended.id != 0 ? find_waker(loop) : here;
        if (unlikely(tells_switches))
            tell_waking(known);
    }
    if (is_off(READY))
        return;
    set_task(known->waker);
    struct { RECORD_HEAD; int32_t task; } *record;
    Cursor *writer;
    if (likely((record = begin_record(READY, known->ready_ns, sizeof *record, &writer)) != NULL)) {
        record->task = known->id;
        end_record(writer, known->ready_ns, sizeof *record);
    }
    else if (!aiotrace_event_numbers(events[READY], known->ready_ns, &known->id)) {
        EMIT(READY, PyLong_FromLong(known->id));
    }
    set_task(here);
}

/* --- the begin ----------------------------------------------------------------------------------------------- */

HOT void
begin_known(Step *step, Known *known)
{
    steps_hooked[(int)known->runtime]++;
    step->known = (Known *)Py_NewRef(known);
    step->ready_ns = known->ready_ns;
    step->waker = known->waker;
    step->previous = aiotrace_task;
    step->is_delivered = 0;
    known->ready_ns = 0;
    known->waker = 0;
    known->has_run = 1;
    step->is_watched = 0;
    step->made.is_made = 0;
    if (unlikely(known->state == SILENT)) {
        set_task(0);
        return;
    }
    set_task(known->id);
    if (unlikely(known->name != NULL || (!known->is_named && commands_left > 0)))
        tell_name(known);
    step->began = task_clock();
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
    step->known->plain_in = 0;
    step->known->is_swallowed = 0;
    if (!is_off(DELIVERED))
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

static int
is_handling_one(const Step *step, const Outcome *outcome)
{
    return outcome->yielded != NULL && is_handling_cancellation(step->known->inner);
}

/* What became of a cancellation of asyncio's that was delivered: at the end of this step, and of later ones until it is
 * clear. */
static void
tell_outcome(Step *step, const Outcome *outcome)
{
    Known *known = step->known;
    int is_done = outcome->yielded == NULL, is_handling = is_handling_one(step, outcome);
    if (is_done && outcome->is_cancelled)
        return;
    PyObject *task = referent(known->ref);
    long cancels = task != NULL ? count_cancels(task) : 0;
    if (step->is_delivered && !is_off(CAUGHT))
        EMIT(CAUGHT, PyLong_FromLong(known->id), place_of(known, is_done));
    if (is_handling)
        return;
    if (cancels > 0 && !(is_done && known->is_swallowed) && !is_off(SWALLOWED))
        EMIT(SWALLOWED, PyLong_FromLong(known->id), place_of(known, is_done));
    known->is_cancelled = 0;
    known->is_swallowed = cancels > 0;
}

/* The same on trio. Only now is it delivered: every sleep of trio's ends by a cancellation that the sleep itself takes
 * back. */
static void
tell_trio_outcome(Step *step, const Outcome *outcome)
{
    Known *known = step->known;
    if (!(outcome->yielded == NULL ? outcome->is_cancelled : is_handling_one(step, outcome)))
        return;
    if (!known->is_cancelled && !is_off(DELIVERED))
        EMIT(DELIVERED, PyLong_FromLong(known->id));
    known->is_cancelled = 1;
    if (outcome->yielded != NULL && !is_off(CAUGHT))
        EMIT(CAUGHT, PyLong_FromLong(known->id), line_of(known));
}

/* --- the end ------------------------------------------------------------------------------------------------- */

/* What task:step holds; the order and the padding of _tracers/task.py's definition. */
typedef struct {
    uint64_t ready_ns, duration_ns, awaited;
    int32_t waker;
} __attribute__((packed)) StepFields;

/* What a task that yielded something waits for. `depth`, `innermost`, `outer`: see find_innermost. */
static Name
name_awaited(PyObject *yielded, int depth, PyObject *innermost, PyObject *outer)
{
    Name name = depth >= 0 ? find_name(innermost, 0) : unknown_name;
    if (name.flags & IS_TRAP && --depth > 0)
        name = find_name(outer, 0);
    if (depth > 0)
        return name;
    return yielded == Py_None ? name_yield : find_name((PyObject *)Py_TYPE(yielded), 0);
}

/* The key of what a task waits for now, and remember it: mostly it waits for the same again. The names hold the code. */
HOT static __attribute__((noinline)) uint64_t
find_awaited(Known *known, PyObject *yielded, int depth, PyObject *innermost, PyObject *outer)
{
    Name name = name_awaited(yielded, depth, innermost, outer);
    int is_own = depth > 0 && name.object == innermost && !(name.flags & IS_TRAP);
    int is_of_both = depth > 1 && name.object == outer;
    known->awaited_code = is_own || is_of_both ? innermost : NULL;
    known->awaited_by = is_own ? NULL : outer;
    known->awaited_key = name.key;
    return name.key;
}

static inline __attribute__((always_inline)) uint64_t
key_of_awaited(Known *known, PyObject *yielded)
{
    PyObject *innermost = NULL, *outer = NULL;
    int depth = find_innermost(known->inner, &innermost, &outer);
    if (likely(depth > 0 && innermost == known->awaited_code &&
               (known->awaited_by == NULL || (depth > 1 && outer == known->awaited_by))))
        return known->awaited_key;
    return find_awaited(known, yielded, depth, innermost, outer);
}

typedef struct { RECORD_HEAD; StepFields fields; } StepRecord;

/* Record a step where nothing stands in the way of it: 0 if something does. */
static inline __attribute__((always_inline)) int
record_plainly(uint64_t key, uint64_t began, uint64_t now, uint64_t ready_ns, int32_t waker)
{
    Cursor *writer;
    StepRecord *record = begin_record(STEP, now, sizeof *record, &writer);
    if (unlikely(record == NULL))
        return 0;
    record->fields.ready_ns = ready_ns;
    record->fields.duration_ns = now > began ? now - began : 0;
    record->fields.awaited = key;
    record->fields.waker = waker;
    end_record(writer, now, sizeof *record);
    return 1;
}

HOT static void
record_step(const Step *step, const Outcome *outcome, uint64_t now)
{
    PyObject *yielded = outcome->yielded;
    uint64_t key = yielded == NULL ? name_done.key : key_of_awaited(step->known, yielded);
    if (likely(record_plainly(key, step->began, now, step->ready_ns, step->waker)))
        return;
    StepFields fields = {step->ready_ns, now > step->began ? now - step->began : 0, key, step->waker};
    if (likely(aiotrace_event_numbers(events[STEP], now, &fields)))
        return;
    Name awaited = name_done;
    if (yielded != NULL) {
        PyObject *innermost = NULL, *outer = NULL;
        int depth = find_innermost(step->known->inner, &innermost, &outer);
        awaited = name_awaited(yielded, depth, innermost, outer);
    }
    EMIT(STEP, PyLong_FromUnsignedLongLong(fields.ready_ns), PyLong_FromUnsignedLongLong(fields.duration_ns),
         text_of(&awaited), PyLong_FromLong(fields.waker));
}

HOT static void
tell_done(Known *known, const Outcome *outcome)
{
    Name exception = name_nothing;
    const Name *result = outcome->is_cancelled ? &name_cancelled : outcome->error != NULL ? &name_raised : &name_returned;
    if (result == &name_raised)
        exception = find_name((PyObject *)Py_TYPE(outcome->error), 0);
    tell_end(known->id, result, &exception, task_clock());
}

/* What is known after a step of asyncio's: who may wake others now; and that it is ready at once, if it only yielded. */
static inline void
note_end(Known *known, PyObject *yielded, uint64_t now)
{
    if (yielded == Py_None) {
        known->ready_ns = now;
        known->waker = known->id;
    }
    just_ended.task = known->task;
    just_ended.id = known->id;
}

HOT static void
leave(Step *step, const Outcome *outcome)
{
    if (unlikely(step->made.is_made))
        switch_out(&step->made, step->known->id, step->known->comm, state_after(outcome), task_clock());
    set_task(step->previous);
    Py_DECREF(step->known);
}

/* A step has ended, with no exception pending. */
HOT void
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
    uint64_t now = task_clock();
    if (!is_off(STEP))
        record_step(step, outcome, now);
    if (known->runtime == ON_ASYNCIO) {
        if (unlikely(known->is_cancelled || (outcome->yielded == NULL && known->cancels > 0)))
            tell_outcome(step, outcome);
        note_end(known, outcome->yielded, now);
    }
    else if (unlikely(step->is_delivered)) {
        tell_trio_outcome(step, outcome);
    }
    if (outcome->yielded == NULL) {
        tell_done(known, outcome);
        forget_task(known);
        if (known->runtime == ON_ASYNCIO)
            unwrap_task(known);
    }
    if (unlikely(now >= round_due))
        go_on_with_round(now);
    look_at_next(known);
    leave(step, outcome);
}

/* --- what a task is sent ------------------------------------------------------------------------------------- */

/* Whether a task of asyncio's that returns is cancelled all the same: it was asked for in its last step. */
static int
must_cancel(Known *known)
{
    PyObject *task = referent(known->ref);
    return task != NULL && door_is_true(&door_must_cancel, task, is_fast(task));
}

/* The end of a step that was sent something. `yielded`: NULL if it is done, with the exception that it is done by. */
HOT void
end_sent(Step *step, PyObject *yielded)
{
    Known *known = step->known;
    Outcome outcome = {yielded, NULL, 0};
    PyObject *kind = NULL, *value = NULL, *traceback = NULL;
    if (yielded == NULL) {
        PyErr_Fetch(&kind, &value, &traceback);
        if (kind != NULL)
            PyErr_NormalizeException(&kind, &value, &traceback);
        if (value == NULL || PyObject_TypeCheck(value, (PyTypeObject *)PyExc_StopIteration))
            outcome.is_cancelled = known->runtime == ON_ASYNCIO && known->cancels > 0 && must_cancel(known);
        else if (known->runtime == ON_TRIO)
            outcome.is_cancelled = is_cancelled_error(value) != 0;
        else
            outcome.is_cancelled = PyObject_TypeCheck(value, (PyTypeObject *)cancelled_error);
        if (value != NULL && !PyObject_TypeCheck(value, (PyTypeObject *)PyExc_StopIteration))
            outcome.error = value;
    }
    end_step(step, &outcome);
    if (kind != NULL)
        PyErr_Restore(kind, value, traceback);
}

/* trio sends errors as values. */
static void
look_at_sent(Step *step, PyObject *sent)
{
    if (Py_TYPE(sent) != trio_error)
        return;
    PyObject *error = PyObject_GetAttrString(sent, "error");
    if (error == NULL)
        PyErr_Clear();
    else if (trio_cancelled != NULL && PyObject_TypeCheck(error, (PyTypeObject *)trio_cancelled))
        step->is_delivered = 1;
    Py_XDECREF(error);
}

HOT static __attribute__((noinline)) PySendResult
send_with_care(Known *known, PyObject *sent, PyObject **result)
{
    if (known->state == PASSES)
        return PyIter_Send(known->inner, sent, result);
    Step step;
    begin_known(&step, known);
    if (known->runtime == ON_TRIO)
        look_at_sent(&step, sent);
    PySendResult how = PyIter_Send(known->inner, sent, result);
    end_sent(&step, how == PYGEN_NEXT ? *result : NULL);
    return how;
}

/* A step that was plain so far returned from the coroutine. Returns 0, without effect, if its end is not as plain. */
HOT static __attribute__((noinline)) int
end_plainly(Known *known, uint64_t began, uint64_t ready_ns, int32_t waker, int32_t previous)
{
    uint64_t now = task_clock();
    if (known->plain_in != plain_round || known->cancels > 0 || now >= round_due ||
        !record_plainly(name_done.key, began, now, ready_ns, waker))
        return 0;
    tell_end(known->id, &name_returned, &name_nothing, now);
    forget_task(known);
    if (known->runtime == ON_ASYNCIO) {
        note_end(known, NULL, now);
        unwrap_task(known);
    }
    set_task(previous);
    Py_DECREF(known);
    return 1;
}

HOT static __attribute__((noinline)) void
end_otherwise(Known *known, PyObject *yielded, uint64_t began, uint64_t ready_ns, int32_t waker, int32_t previous)
{
    Step step = {.known = known, .began = began, .ready_ns = ready_ns, .waker = waker, .previous = previous};
    end_sent(&step, yielded);
}

/* Send what stands for a task's coroutine something, which is a step. As PyIter_Send. */
HOT PySendResult
send_step(PyObject *self, PyObject *sent, PyObject **result)
{
    Known *known = (Known *)self;
    PyObject *inner = known->inner;
    if (unlikely(known->plain_in != plain_round || aiotrace_is_watched || Py_TYPE(sent) == trio_error))
        return send_with_care(known, sent, result);
    uint64_t ready_ns = known->ready_ns;
    int32_t waker = known->waker, previous = aiotrace_task;
    Py_INCREF(known);
    known->ready_ns = 0;
    known->waker = 0;
    known->has_run = 1;
    set_task(known->id);
    uint64_t began = task_clock();
    PySendResult how = PyCoro_Type.tp_as_async->am_send(inner, sent, result);
    if (likely(how == PYGEN_NEXT && known->plain_in == plain_round)) {
        uint64_t now = task_clock();
        if (likely(now < round_due) &&
            likely(record_plainly(key_of_awaited(known, *result), began, now, ready_ns, waker))) {
            if (known->runtime == ON_ASYNCIO)
                note_end(known, *result, now);
            set_task(previous);
            Py_DECREF(known);
            return how;
        }
    }
    if (how == PYGEN_RETURN && end_plainly(known, began, ready_ns, waker, previous))
        return how;
    end_otherwise(known, how == PYGEN_NEXT ? *result : NULL, began, ready_ns, waker, previous);
    return how;
}
