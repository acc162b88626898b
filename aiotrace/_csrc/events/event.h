/* What C files outside of event.c do with events: ask about them, and record them without a call
 * through Python. */
#ifndef AIOTRACE_EVENT_H
#define AIOTRACE_EVENT_H

#include "common/common.h"

#pragma GCC visibility push(hidden)

/* Whether an object is an event of the C module. */
int aiotrace_event_check(PyObject *event);

int aiotrace_event_id(PyObject *event);

/* The epoch in which all open recordings take the event, without filters; 0: it has to be called. */
const uint64_t *aiotrace_event_plain_epoch(PyObject *event);

/* Whether no open recording takes the event. */
int aiotrace_event_is_off(PyObject *event);

/* Record an event whose fields are numbers and keys of symbols.
 *
 *     now      CLOCK_MONOTONIC in ns, read just now
 *     fields   the record after the common fields, byte for byte: `fixed_size` less 8
 *
 * Returns 0, without effect, if the event has to be called instead (a full page, a filter, several
 * recordings). */
int aiotrace_event_numbers(PyObject *event, uint64_t now, const void *fields);

/* The same for an event at that time by the clock of this thread's writer, which
 * `aiotrace_event_now` reads, in ns. */
int aiotrace_event_at(PyObject *event, uint64_t now, const void *fields);
uint64_t aiotrace_event_now(void);

#pragma GCC visibility pop

#endif
