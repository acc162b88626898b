/* What is recorded of a call: the kernel's events function, funcgraph_entry, funcgraph_exit.
 *
 *     function   ip, parent_ip     entry   func, depth     exit   func, depth, overrun, calltime, rettime
 *
 * A record goes straight to its place. Whatever is not as it mostly is (a page that is full, a
 * filter, several recordings, a long pause) is left to the event.
 */
#ifndef AIOTRACE_FUNCTION_RECORDS_H
#define AIOTRACE_FUNCTION_RECORDS_H

#include "calls/calls.h"

#define COMMON uint32_t header, id; int32_t pid
typedef struct __attribute__((packed, aligned(4))) {
    COMMON;
    uint64_t ip, parent_ip;
} CallRecord;
typedef struct __attribute__((packed, aligned(4))) {
    COMMON;
    uint64_t func;
    int32_t depth;
} EntryRecord;
typedef struct __attribute__((packed, aligned(4))) {
    COMMON;
    uint64_t func;
    int32_t depth;
    uint32_t overrun;
    uint64_t calltime, rettime;
} ExitRecord;

#pragma GCC visibility push(hidden)

/* Call the event with its fields as objects, which Py_BuildValue makes. */
void aiotrace_call_event_slowly(PyObject *event, const char *format, ...);

/* Record this event; None: it is not traced. */
void aiotrace_set_kind(Kind *kind, PyObject *event);

#pragma GCC visibility pop

/* Where a record of `size` bytes goes, its common part written, or NULL if that is not for here.
 * The caller stores the rest of it there at once (a record built elsewhere and copied waits for its
 * own stores) and calls commit. */
static inline __attribute__((always_inline)) void *
begin_call_record(const Kind *kind, uint64_t now, uint32_t size, Cursor **writer)
{
    Lease *lease = aiotrace_lease;
    if (unlikely(lease == NULL || lease->epoch != aiotrace_epoch || *kind->plain_epoch != aiotrace_epoch))
        return NULL;
    Cursor *cursor = lease->only;
    if (unlikely(cursor == NULL))
        return NULL;
    char *payload = begin_record(&cursor->at, now, size - 4);
    if (unlikely(payload == NULL))
        return NULL;
    struct { COMMON; } *record = (void *)(payload - 4);
    record->id = kind->id;
    record->pid = lease->pid;
    *writer = cursor;
    return record;
}

static inline void
record_call(uint64_t now, uint64_t address, uint64_t caller)
{
    Cursor *cursor;
    CallRecord *record = begin_call_record(&aiotrace_tracing.call, now, sizeof *record, &cursor);
    if (likely(record != NULL)) {
        record->ip = address;
        record->parent_ip = caller;
        commit(&cursor->at, now, cursor->at.end + sizeof *record);
        return;
    }
    CallRecord copy = {.ip = address, .parent_ip = caller};
    if (!aiotrace_event_at(aiotrace_tracing.call.event, now, &copy.ip))
        aiotrace_call_event_slowly(aiotrace_tracing.call.event, "(KK)", (unsigned long long)address,
                                   (unsigned long long)caller);
}

static inline void
record_entry(uint64_t now, uint64_t address, uint32_t depth)
{
    Cursor *cursor;
    EntryRecord *record = begin_call_record(&aiotrace_tracing.entry, now, sizeof *record, &cursor);
    if (likely(record != NULL)) {
        record->func = address;
        record->depth = (int32_t)depth;
        commit(&cursor->at, now, cursor->at.end + sizeof *record);
        return;
    }
    EntryRecord copy = {.func = address, .depth = (int32_t)depth};
    if (!aiotrace_event_at(aiotrace_tracing.entry.event, now, &copy.func))
        aiotrace_call_event_slowly(aiotrace_tracing.entry.event, "(Ki)", (unsigned long long)address, (int)depth);
}

static inline void
record_exit(uint64_t now, uint64_t address, uint32_t depth, uint64_t began)
{
    Cursor *cursor;
    ExitRecord *record = begin_call_record(&aiotrace_tracing.exit, now, sizeof *record, &cursor);
    if (likely(record != NULL)) {
        record->func = address;
        record->depth = (int32_t)depth;
        record->overrun = 0;
        record->calltime = began;
        record->rettime = now;
        commit(&cursor->at, now, cursor->at.end + sizeof *record);
        return;
    }
    ExitRecord copy = {.func = address, .depth = (int32_t)depth, .calltime = began, .rettime = now};
    if (!aiotrace_event_at(aiotrace_tracing.exit.event, now, &copy.func))
        aiotrace_call_event_slowly(aiotrace_tracing.exit.event, "(KiIKK)", (unsigned long long)address, (int)depth, 0u,
                                   (unsigned long long)began, (unsigned long long)now);
}

#endif
