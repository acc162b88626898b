/* A call begins, or ends, that is not the common case: its function is met for the first time, or
 * not traced; its thread has no stack of this generation; it is too deep; something SILENT runs; or
 * the call that ends is not the last one.
 *
 * Invariants:
 * - To find an address runs Python, in which anything may change: all else is read after it.
 * - A stack is `ready` when calls need only push and pop: it is of this generation, nothing SILENT
 *   runs in its thread, and no call was too deep to be stored. Whatever changes one of these calls
 *   `settle`.
 * - A stack of another generation holds nothing. Its thread empties it at its next call.
 */
#include "calls/call.h"

static inline void
settle(Stack *stack)
{
    stack->ready = stack->silent || stack->beyond ? 0 : stack->generation;
}

/* The stack, if a call may be pushed; or NULL. */
static Stack *
prepare(uint64_t address)
{
    Stack *stack = aiotrace_this_stack;
    if (stack == &aiotrace_no_stack && (stack = aiotrace_grow_stack(stack)) == NULL)
        return NULL;
    if (stack->generation != aiotrace_tracing.generation) {
        stack->generation = aiotrace_tracing.generation;
        stack->depth = stack->beyond = stack->silent = 0;
    }
    stack->silent += address == SILENT;
    if (!stack->silent && stack->depth == stack->room) {
        Stack *grown = stack->beyond ? NULL : aiotrace_grow_stack(stack);
        if (grown == NULL)
            stack->beyond++;
        else
            stack = grown;
    }
    settle(stack);
    return stack->ready ? stack : NULL;
}

/* How deep a call of this code is that is not the last one; or 0 if there is nothing to report. */
static uint32_t
find_call(Stack *stack, PyObject *code, uint64_t address)
{
    if (stack->generation != aiotrace_tracing.generation)
        return 0;
    if (stack->silent) {
        stack->silent -= address == SILENT;
        settle(stack);
        return 0;
    }
    if (stack->beyond) {
        stack->beyond--;
        settle(stack);
        return 0;
    }
    uint32_t depth = stack->depth;
    while (depth && stack->calls[depth].code != code)
        depth--;
    return depth; /* 0: it was entered before tracing began */
}

/* These two stand apart, so that a function that is not traced, for which 3.11 calls us each time,
 * saves few registers. */
static __attribute__((noinline)) void
enter_found(PyObject *code, uint64_t address)
{
    Stack *stack = prepare(address);
    if (stack != NULL)
        push(stack, code, address);
}

static __attribute__((noinline)) void
leave_found(PyObject *code, uint64_t address)
{
    Stack *stack = aiotrace_this_stack;
    uint32_t depth = find_call(stack, code, address);
    if (depth != 0)
        pop(stack, depth);
}

int
aiotrace_enter_slowly(PyObject *code)
{
    if (aiotrace_tracing.locate == NULL)
        return 1;
    uint64_t address = aiotrace_find_address(code);
    if (address == IGNORED)
        return 0;
    enter_found(code, address);
    return 1;
}

int
aiotrace_leave_slowly(PyObject *code)
{
    if (aiotrace_tracing.locate == NULL)
        return 1;
    uint64_t address = aiotrace_find_address(code);
    if (address == IGNORED)
        return 0;
    leave_found(code, address);
    return 1;
}
