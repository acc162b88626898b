/* Calls of Python functions, while they are traced: the kernel's function and function_graph
 * events.
 *
 *                 enter                                     leave
 *   code object --extra--> address --push--> [call, began]  --pop--> func, calltime, rettime
 *
 *   start_stop.c    start and stop
 *   hooks_312.c     Python 3.12 and newer: callbacks of sys.monitoring
 *   hooks_311.c     Python 3.11: a profile function
 *   call.h, .c      a call begins, and ends
 *   records.h, .c   what is recorded of it
 *   stack.c         the running calls of a thread
 *   address.c       the address of a code object
 *
 * Each calls only those below it. The headers hold the common case, which the hooks inline; the .c
 * files the rest.
 *
 * Invariants:
 * - A coroutine that is suspended has left, and enters when it is resumed: so calls nest in each
 *   thread.
 * - What does not nest all the same (tracing began in the middle of calls, or the interpreter
 *   reported no end) is left out, and what is above it on the stack is dropped: a depth is never
 *   wrong for more than one call.
 * - The interpreter calls no hook inside a hook, so the Python code of the uncommon cases is not
 *   traced.
 * - A call of the common case takes three branches before its time is read: the address is valid,
 *   this thread's stack belongs to this generation (`ready`), and it has room, or the call on it is
 *   the one that ends. All else is handled by `aiotrace_enter_slowly` and `aiotrace_leave_slowly`.
 */
#ifndef AIOTRACE_FUNCTION_H
#define AIOTRACE_FUNCTION_H

#include "common/clock.h"
#include "events/event.h"
#include "ring/cursor.h"

/* --- what is traced (start_stop.c) ----------------------------------------------------------------------- */

/* An event that is recorded. */
typedef struct {
    PyObject *event; /* NULL: it is not traced */
    const uint64_t *plain_epoch;
    uint32_t id;
} Kind;

/* Of the process, under the GIL: what each call looks at, and so side by side. */
typedef struct {
    uint32_t generation;    /* of tracing, and of the time without: what a stack holds from before is stale */
    uint64_t choice;        /* of functions: addresses found for another one are stale */
    Py_ssize_t plain_index; /* of our extra in code objects, if it lies where `peek` looks; or more than there can be */
    Kind call, entry, exit;
    PyObject *locate; /* code -> address, IGNORED or SILENT; NULL: nothing is traced */
} Tracing;

#pragma GCC visibility push(hidden)

extern Tracing aiotrace_tracing;

/* Whether the kernel makes CLOCK_MONOTONIC from the TSC: so the TSC is constant, and the same on
 * all processors. */
extern int aiotrace_calls_use_tsc;

/* The time of a call. */
static inline uint64_t
call_time(void)
{
    return likely(aiotrace_calls_use_tsc) ? aiotrace_read_tsc() : aiotrace_event_now();
}

/* --- addresses (address.c) ---------------------------------------------------------------------- */

#define IGNORED 1     /* the function is not traced */
#define SILENT 2      /* nor is what it calls */
#define ADDRESS_MIN 3 /* of what is traced */
#define ADDRESS_BITS 48
#define ADDRESS_END ((uint64_t)1 << ADDRESS_BITS)

/* What a code object holds for us, or 0, without the checks that the interpreter's own function
 * makes. The struct is codeobject.c's own; `aiotrace_find_extra` looks whether it is so. */
static inline uint64_t
peek(PyObject *code)
{
    const struct {
        Py_ssize_t size;
        void *extras[];
    } *extra = ((PyCodeObject *)code)->co_extra;
    return extra == NULL || aiotrace_tracing.plain_index >= extra->size
               ? 0
               : (uint64_t)(uintptr_t)extra->extras[aiotrace_tracing.plain_index];
}

/* The address that an extra holds. It is ADDRESS_END or more if none is known: of the present
 * choice, that is, which stands above it and is never 0. */
static inline uint64_t
address_in(uint64_t extra)
{
    return extra - (aiotrace_tracing.choice << ADDRESS_BITS);
}

/* The address of a code object, asked for if it is not known. Runs Python; sets no exception. */
uint64_t aiotrace_find_address(PyObject *code);

/* Have a place in code objects, and find out with this one where it lies. Returns -1 with an
 * exception set if there is none. */
int aiotrace_find_extra(PyObject *code);

/* --- the stack of a thread (stack.c) ------------------------------------------------------------ */

typedef struct {
    PyObject *code; /* borrowed: it runs */
    uint64_t address;
    uint64_t began; /* ns */
} Call;

typedef struct {
    uint32_t ready; /* `generation`, if nothing is but to push and pop; or 0 */
    uint32_t depth;
    uint32_t room;
    uint32_t beyond; /* calls that are too deep to be kept */
    uint32_t silent; /* SILENT functions that run */
    uint32_t generation;
    Call calls[]; /* the call at depth n (from 1) is calls[n]; calls[0] is unused: code and address are 0 */
} Stack;

extern Stack aiotrace_no_stack; /* of a thread that has none yet: never ready */
extern THREAD_LOCAL Stack *aiotrace_this_stack;

/* The stack with more room, if that can be; or NULL, and it is as it was. */
Stack *aiotrace_grow_stack(Stack *stack);

int aiotrace_call_stack_exec(void);

/* --- the hooks: each adds its functions to the module ---------------------------------------------------- */

#if PY_VERSION_HEX >= 0x030C0000
int aiotrace_hooks_312_exec(PyObject *module);
#else
int aiotrace_hooks_311_exec(PyObject *module);
#endif

#pragma GCC visibility pop

#endif
