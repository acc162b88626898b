/* What the hooks call: a task is made ready, a step of it begins and ends.
 *
 *     made_ready -> begin_step -> (it runs) -> end_step: task:step, and task:done if that was its end
 *
 * Nearly all steps are plain: they need nothing but a record at their end. `aiotrace_send_step`
 * does those in one stretch, with its state in registers, and hands the others over. Whether the
 * next step of a task will be plain is determined when it is registered and at the end of a step
 * that is not; that holds until something happens to the task, or to all of them.
 */
#include "tasks/frames.h"

HOT_DATA uint32_t aiotrace_plain_round = 1;
THREAD_LOCAL int aiotrace_is_preset;
uint64_t aiotrace_steps_hooked[2];

/* Wake-ups that asyncio performs right after a step count as caused by that task. */
static THREAD_LOCAL struct {
    const PyObject *task; /* only to be compared */
    int32_t id;           /* 0: no step ended just now */
} just_ended;

/* --- ready --------------------------------------------------------------------------------------------------- */

/* Who wakes a task from outside of any step: the task whose step ended just now, if its loop is
 * still at it. */
HOT static int32_t
find_waker(PyObject *loop)
{
    PyObject *current = aiotrace_current_tasks == NULL ? NULL : PyDict_GetItemWithError(aiotrace_current_tasks, loop);
    if (current == NULL || current != just_ended.task) {
        PyErr_Clear();
        just_ended.id = 0;
    }
    return just_ended.id;
}

/* A step of a task is scheduled in a loop, by what runs here, which is not known yet; or task:ready
 * is recorded. */
HOT void
aiotrace_emit_ready(TracedTask *traced, PyObject *loop)
{
    if (unlikely(traced->state != TRACES))
        return;
    int32_t here = aiotrace_task;
    if (traced->ready_ns == 0) { /* else its own step has noted it at its end */
        traced->ready_ns = aiotrace_read_tsc();
        traced->waker = here == 0 && just_ended.id != 0 ? find_waker(loop) : here;
        if (unlikely(aiotrace_emits_sched_events))
            aiotrace_emit_waking(traced);
    }
    if (is_off(READY))
        return;
    set_task(traced->waker);
    struct { RECORD_HEAD; int32_t task; } *record;
    Cursor *writer;
    if (likely((record = begin_task_record(READY, traced->ready_ns, sizeof *record, &writer)) != NULL)) {
        record->task = traced->id;
        end_record(writer, traced->ready_ns, sizeof *record);
    }
    else if (!aiotrace_event_numbers(aiotrace_task_events[READY], traced->ready_ns, &traced->id)) {
        EMIT(READY, PyLong_FromLong(traced->id));
    }
    set_task(here);
}

/* --- the begin ----------------------------------------------------------------------------------------------- */

HOT void
aiotrace_begin_step(Step *step, TracedTask *traced)
{
    aiotrace_steps_hooked[(int)traced->runtime]++;
    step->traced = (TracedTask *)Py_NewRef(traced);
    step->ready_ns = traced->ready_ns;
    step->waker = traced->waker;
    step->previous = aiotrace_task;
    step->is_delivered = 0;
    traced->ready_ns = 0;
    traced->waker = 0;
    traced->has_run = 1;
    step->is_watched = 0;
    step->made.is_made = 0;
    if (unlikely(traced->state == SILENT)) {
        set_task(0);
        return;
    }
    set_task(traced->id);
    if (unlikely(traced->name != NULL || (!traced->is_named && aiotrace_commands_left > 0)))
        aiotrace_emit_name(traced);
    step->began = aiotrace_read_tsc();
    /* else it has run: task_make */
    if (unlikely(aiotrace_emits_sched_events) && !(aiotrace_making != NULL && aiotrace_making->task != NULL))
        aiotrace_switch_in(&step->made, step->previous, traced->id, aiotrace_comm_of(traced), step->began);
    step->is_watched = (char)begin_watched(traced->id, step->began);
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
    Name name = depth >= 0 ? aiotrace_find_name(innermost, 0) : aiotrace_unknown_name;
    if (name.flags & IS_TRAP && --depth > 0)
        name = aiotrace_find_name(outer, 0);
    if (depth > 0)
        return name;
    return yielded == Py_None ? aiotrace_name_yield : aiotrace_find_name((PyObject *)Py_TYPE(yielded), 0);
}

/* The key of what a task waits for now, and remember it: mostly it waits for the same again. The
 * names hold the code. */
HOT static __attribute__((noinline)) uint64_t
find_awaited(TracedTask *traced, PyObject *yielded, int depth, PyObject *innermost, PyObject *outer)
{
    Name name = name_awaited(yielded, depth, innermost, outer);
    int is_own = depth > 0 && name.object == innermost && !(name.flags & IS_TRAP);
    int is_of_both = depth > 1 && name.object == outer;
    traced->awaited_code = is_own || is_of_both ? innermost : NULL;
    traced->awaited_by = is_own ? NULL : outer;
    traced->awaited_key = name.key;
    return name.key;
}

static inline __attribute__((always_inline)) uint64_t
key_of_awaited(TracedTask *traced, PyObject *yielded)
{
    PyObject *innermost = NULL, *outer = NULL;
    int depth = aiotrace_find_innermost(traced->inner, &innermost, &outer);
    if (likely(depth > 0 && innermost == traced->awaited_code &&
               (traced->awaited_by == NULL || (depth > 1 && outer == traced->awaited_by))))
        return traced->awaited_key;
    return find_awaited(traced, yielded, depth, innermost, outer);
}

typedef struct { RECORD_HEAD; StepFields fields; } StepRecord;

/* Record a step in place. Returns 0, without effect, if that cannot be done. */
static inline __attribute__((always_inline)) int
record_plainly(uint64_t key, uint64_t began, uint64_t now, uint64_t ready_ns, int32_t waker)
{
    Cursor *writer;
    StepRecord *record = begin_task_record(STEP, now, sizeof *record, &writer);
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
    uint64_t key = yielded == NULL ? aiotrace_name_done.key : key_of_awaited(step->traced, yielded);
    if (likely(record_plainly(key, step->began, now, step->ready_ns, step->waker)))
        return;
    StepFields fields = {step->ready_ns, now > step->began ? now - step->began : 0, key, step->waker};
    if (likely(aiotrace_event_numbers(aiotrace_task_events[STEP], now, &fields)))
        return;
    Name awaited = aiotrace_name_done;
    if (yielded != NULL) {
        PyObject *innermost = NULL, *outer = NULL;
        int depth = aiotrace_find_innermost(step->traced->inner, &innermost, &outer);
        awaited = name_awaited(yielded, depth, innermost, outer);
    }
    EMIT(STEP, PyLong_FromUnsignedLongLong(fields.ready_ns), PyLong_FromUnsignedLongLong(fields.duration_ns),
         aiotrace_text_of(&awaited), PyLong_FromLong(fields.waker));
}

HOT static void
emit_done(TracedTask *traced, const Outcome *outcome)
{
    Name exception = aiotrace_name_nothing;
    const Name *result = outcome->is_cancelled ? &aiotrace_name_cancelled : outcome->error != NULL ?
 &aiotrace_name_raised : &aiotrace_name_returned;
    if (result == &aiotrace_name_raised)
        exception = aiotrace_find_name((PyObject *)Py_TYPE(outcome->error), 0);
    aiotrace_emit_end(traced->id, result, &exception, aiotrace_read_tsc());
}

/* After a step of asyncio's: it may wake others now; and it is ready at once, if it only yielded. */
static inline void
note_end(TracedTask *traced, PyObject *yielded, uint64_t now)
{
    if (yielded == Py_None) {
        traced->ready_ns = now;
        traced->waker = traced->id;
    }
    just_ended.task = traced->task;
    just_ended.id = traced->id;
}

HOT static void
leave(Step *step, const Outcome *outcome)
{
    if (unlikely(step->made.is_made))
        aiotrace_switch_out(&step->made, step->traced->id, step->traced->comm, aiotrace_state_after(outcome),
                            aiotrace_read_tsc());
    set_task(step->previous);
    Py_DECREF(step->traced);
}

/* A step has ended, with no exception pending. */
HOT void
aiotrace_end_step(Step *step, const Outcome *outcome)
{
    TracedTask *traced = step->traced;
    end_watched(step->is_watched);
    if (unlikely(traced->state != TRACES)) { /* aiotrace's own; or tracing has ended */
        if (traced->state == SILENT && outcome->yielded == NULL)
            aiotrace_forget_task(traced);
        leave(step, outcome);
        return;
    }
    uint64_t now = aiotrace_read_tsc();
    if (!is_off(STEP))
        record_step(step, outcome, now);
    if (traced->runtime == ON_ASYNCIO) {
        if (unlikely(traced->is_cancelled || (outcome->yielded == NULL && traced->cancels > 0)))
            aiotrace_emit_cancel_outcome(step, outcome);
        note_end(traced, outcome->yielded, now);
    }
    else if (unlikely(step->is_delivered)) {
        aiotrace_emit_trio_outcome(step, outcome);
    }
    if (outcome->yielded == NULL) {
        emit_done(traced, outcome);
        aiotrace_forget_task(traced);
        if (traced->runtime == ON_ASYNCIO)
            aiotrace_unwrap_task(traced);
    }
    if (unlikely(now >= aiotrace_keyframe_due))
        aiotrace_continue_keyframe(now);
    predict_next_step(traced);
    leave(step, outcome);
}

/* --- what a task is sent ------------------------------------------------------------------------------------- */

/* Whether a task of asyncio's that returns is cancelled all the same: it was asked for in its last
 * step. */
static int
must_cancel(TracedTask *traced)
{
    PyObject *task = referent(traced->ref);
    return task != NULL && aiotrace_field_is_true(&aiotrace_reader_must_cancel, task, is_c_task(task));
}

/* The end of a step that was sent something. `yielded`: NULL if it is done, with the exception that
 * it is done by. */
HOT void
aiotrace_end_sent(Step *step, PyObject *yielded)
{
    TracedTask *traced = step->traced;
    Outcome outcome = {yielded, NULL, 0};
    PyObject *kind = NULL, *value = NULL, *traceback = NULL;
    if (yielded == NULL) {
        PyErr_Fetch(&kind, &value, &traceback);
        if (kind != NULL)
            PyErr_NormalizeException(&kind, &value, &traceback);
        if (value == NULL || PyObject_TypeCheck(value, (PyTypeObject *)PyExc_StopIteration))
            outcome.is_cancelled = traced->runtime == ON_ASYNCIO && traced->cancels > 0 && must_cancel(traced);
        else if (traced->runtime == ON_TRIO)
            outcome.is_cancelled = aiotrace_is_cancelled_error(value) != 0;
        else
            outcome.is_cancelled = PyObject_TypeCheck(value, (PyTypeObject *)aiotrace_cancelled_error);
        if (value != NULL && !PyObject_TypeCheck(value, (PyTypeObject *)PyExc_StopIteration))
            outcome.error = value;
    }
    aiotrace_end_step(step, &outcome);
    if (kind != NULL)
        PyErr_Restore(kind, value, traceback);
}

/* trio sends errors as values. */
static void
examine_sent(Step *step, PyObject *sent)
{
    if (Py_TYPE(sent) != aiotrace_trio_error)
        return;
    PyObject *error = PyObject_GetAttrString(sent, "error");
    if (error == NULL)
        PyErr_Clear();
    else if (aiotrace_trio_cancelled != NULL && PyObject_TypeCheck(error, (PyTypeObject *)aiotrace_trio_cancelled))
        step->is_delivered = 1;
    Py_XDECREF(error);
}

HOT static __attribute__((noinline)) PySendResult
send_with_care(TracedTask *traced, PyObject *sent, PyObject **result)
{
    if (traced->state == PASSES)
        return PyIter_Send(traced->inner, sent, result);
    Step step;
    aiotrace_begin_step(&step, traced);
    if (traced->runtime == ON_TRIO)
        examine_sent(&step, sent);
    PySendResult how = PyIter_Send(traced->inner, sent, result);
    aiotrace_end_sent(&step, how == PYGEN_NEXT ? *result : NULL);
    return how;
}

/* A step that was plain so far returned from the coroutine. Returns 0, without effect, if its end
 * is not as plain. */
HOT static __attribute__((noinline)) int
end_plainly(TracedTask *traced, uint64_t began, uint64_t ready_ns, int32_t waker, int32_t previous)
{
    uint64_t now = aiotrace_read_tsc();
    if (traced->plain_in != aiotrace_plain_round || traced->cancels > 0 || now >= aiotrace_keyframe_due ||
        !record_plainly(aiotrace_name_done.key, began, now, ready_ns, waker))
        return 0;
    aiotrace_emit_end(traced->id, &aiotrace_name_returned, &aiotrace_name_nothing, now);
    aiotrace_forget_task(traced);
    if (traced->runtime == ON_ASYNCIO) {
        note_end(traced, NULL, now);
        aiotrace_unwrap_task(traced);
    }
    set_task(previous);
    Py_DECREF(traced);
    return 1;
}

HOT static __attribute__((noinline)) void
end_otherwise(TracedTask *traced, PyObject *yielded, uint64_t began, uint64_t ready_ns, int32_t waker, int32_t previous)
{
    Step step = {.traced = traced, .began = began, .ready_ns = ready_ns, .waker = waker, .previous = previous};
    aiotrace_end_sent(&step, yielded);
}

/* Send a value to the Coroutine of a task, which is a step. The same arguments and results as
 * PyIter_Send. */
HOT PySendResult
aiotrace_send_step(PyObject *self, PyObject *sent, PyObject **result)
{
    TracedTask *traced = (TracedTask *)self;
    PyObject *inner = traced->inner;
    if (unlikely(traced->plain_in != aiotrace_plain_round || aiotrace_is_watched ||
                 Py_TYPE(sent) == aiotrace_trio_error))
        return send_with_care(traced, sent, result);
    uint64_t ready_ns = traced->ready_ns;
    int32_t waker = traced->waker, previous = aiotrace_task;
    Py_INCREF(traced);
    traced->ready_ns = 0;
    traced->waker = 0;
    traced->has_run = 1;
    set_task(traced->id);
    uint64_t began = aiotrace_read_tsc();
    PySendResult how = PyCoro_Type.tp_as_async->am_send(inner, sent, result);
    if (likely(how == PYGEN_NEXT && traced->plain_in == aiotrace_plain_round)) {
        uint64_t now = aiotrace_read_tsc();
        if (likely(now < aiotrace_keyframe_due) &&
            likely(record_plainly(key_of_awaited(traced, *result), began, now, ready_ns, waker))) {
            if (traced->runtime == ON_ASYNCIO)
                note_end(traced, *result, now);
            set_task(previous);
            Py_DECREF(traced);
            return how;
        }
    }
    if (how == PYGEN_RETURN && end_plainly(traced, began, ready_ns, waker, previous))
        return how;
    end_otherwise(traced, how == PYGEN_NEXT ? *result : NULL, began, ready_ns, waker, previous);
    return how;
}
