/* A call begins, and ends: what the hooks inline.
 *
 *     enter   code --peek--> address     ready, and there is room?     --> push, record       else aiotrace_enter_slowly
 *     leave   code                       ready, and it is the last?    --> pop, record        else aiotrace_leave_slowly
 *
 * Invariant: a call of the common case runs only this file and what it includes. All checks that
 * need more are in call.c.
 */
#ifndef AIOTRACE_FUNCTION_CALLS_H
#define AIOTRACE_FUNCTION_CALLS_H

#include "calls/records.h"

#pragma GCC visibility push(hidden)

/* Both return 0 if the function is not traced. */
int aiotrace_enter_slowly(PyObject *code);
int aiotrace_leave_slowly(PyObject *code);

#pragma GCC visibility pop

static inline __attribute__((always_inline)) void
push(Stack *stack, PyObject *code, uint64_t address)
{
    uint64_t now = call_time();
    uint32_t depth = stack->depth++; /* as the kernel counts: the outermost call's is 0 */
    Call *call = &stack->calls[depth];
    uint64_t caller = call->address;
    call[1] = (Call){code, address, now};
    if (likely(aiotrace_tracing.entry.event != NULL))
        record_entry(now, address, depth);
    if (unlikely(aiotrace_tracing.call.event != NULL))
        record_call(now, address, caller);
}

static inline __attribute__((always_inline)) void
pop(Stack *stack, uint32_t depth)
{
    stack->depth = depth - 1;
    if (likely(aiotrace_tracing.exit.event != NULL)) {
        const Call *call = &stack->calls[depth];
        record_exit(call_time(), call->address, depth - 1, call->began);
    }
}

/* Returns 0 if the function is not traced. */
static inline __attribute__((always_inline)) int
enter(PyObject *code)
{
    Stack *stack = aiotrace_this_stack;
    uint64_t address = address_in(peek(code));
    if (unlikely(address - ADDRESS_MIN >= ADDRESS_END - ADDRESS_MIN || stack->ready != aiotrace_tracing.generation ||
                 stack->depth == stack->room))
        return aiotrace_enter_slowly(code);
    push(stack, code, address);
    return 1;
}

/* Returns 0 if the function is not traced. */
static inline __attribute__((always_inline)) int
leave(PyObject *code)
{
    Stack *stack = aiotrace_this_stack;
    uint32_t depth = stack->depth;
    if (unlikely(stack->ready != aiotrace_tracing.generation || stack->calls[depth].code != code))
        return aiotrace_leave_slowly(code);
    pop(stack, depth);
    return 1;
}

#endif
