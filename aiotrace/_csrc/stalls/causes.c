/* Why a step lasts: what its thread's time was spent on, as the kernel counts it, and how the
 * sampler waited for the GIL.
 *
 *     first sample ....... the step lasts ....... last sample --aiotrace_stall_judge--> Python, C, gc, the GIL, ...
 *     the sampler requests the GIL: ---waits---|
 *
 * Invariant: a cause is what most of the window was spent on; what is not known is "unknown" and
 * not a guess. Reading the kernel's numbers costs system calls, so they are read twice a stall, and
 * never by other steps.
 */
#include "stalls/stalls.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define HELD_INTERVALS 3u /* switch intervals: who has the GIL longer, on the average, is in C, and does not hear */
#define WAKE_INTERVALS 4u /* switch intervals: who waits for the GIL wakes at least as often, to ask for it */

Cause aiotrace_stall_causes[CAUSES]; /* written by start, before there is a watcher */

/* Read a file of /proc, which is short. Returns whether there is a text; it ends with a NUL. No
 * GIL. */
static int
read_proc(int32_t thread, const char *name, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/%s", (int)thread, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, size - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    return length > 0;
}

char
aiotrace_stall_thread_state(int32_t thread)
{
    char text[128]; /* proc_pid_stat(5): pid (name) state ...; the name has up to 15 bytes, also brackets */
    if (!read_proc(thread, "stat", text, sizeof text))
        return 0;
    const char *bracket = strrchr(text, ')');
    return bracket != NULL && bracket[1] == ' ' ? bracket[2] : 0;
}

/* How long a thread was ready to run, but on no processor, and how often it was put on one; 0: not
 * known. */
static void
read_delay(int32_t thread, uint64_t *delay_ns, uint64_t *slices)
{
    char text[96]; /* Documentation/scheduler/sched-stats.rst: time on processors, time waiting for one, slices */
    *delay_ns = *slices = 0;
    if (read_proc(thread, "schedstat", text, sizeof text)) {
        char *rest = text;
        strtoull(rest, &rest, 10); /* older than read_cpu's by up to a tick */
        *delay_ns = strtoull(rest, &rest, 10);
        *slices = strtoull(rest, &rest, 10);
    }
}

/* How long a thread has run; 0: not known. */
static uint64_t
read_cpu(int32_t thread)
{
    struct timespec cpu;
    /* The id of a thread's clock as the kernel makes it (include/linux/posix-timers_types.h): ~thread,
 3 bits of kind. */
    clockid_t clock = (clockid_t)(~(unsigned)thread << 3 | 6);
    return clock_gettime(clock, &cpu) == 0 ? (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec : 0;
}

Sample
aiotrace_stall_sample(const Slot *slot)
{
    Sample now = {.ns = aiotrace_monotonic_ns(), .late_ns = aiotrace_stalls.late_ns, .cpu_ns = read_cpu(slot->thread)};
    read_delay(slot->thread, &now.delay_ns, &now.slices);
    uint64_t collecting = load_acquire(&slot->gc_began);
    now.gc_ns = load_acquire(&slot->gc_ns) + (collecting ? since(collecting, now.ns) : 0);
    return now;
}

int
aiotrace_stall_judge(const Sample *first, const Sample *last, const Waits *waits, char state)
{
    uint64_t window = since(first->ns, last->ns), cpu = since(first->cpu_ns, last->cpu_ns);
    uint64_t delay = since(first->delay_ns, last->delay_ns), late = since(first->late_ns, last->late_ns);
    uint64_t idle = since(cpu + delay, window), slices = since(first->slices, last->slices);
    /* Python code hears sooner that the GIL is asked for. */
    uint64_t deaf = HELD_INTERVALS * aiotrace_stalls.interval * waits->count;
    if (first->ns == 0 || window < PAUSE_MIN)
        return UNKNOWN;
    if (state == 'R') { /* it wants to run; that is counted when it does */
        delay += idle;
        idle = 0;
    }
    if (late > delay) { /* nothing ran: stopped, or a machine that stood still */
        uint64_t moved = late - delay < idle ? late - delay : idle;
        delay += moved;
        idle -= moved;
    }
    if (2 * since(first->gc_ns, last->gc_ns) >= window)
        return GC;
    if (cpu >= delay && cpu >= idle)
        return waits->held_ns > deaf ? C_CALL : PYTHON;
    if (delay >= idle)
        return SCHEDULER;
    if (waits->longest_ns >= aiotrace_stalls.interval / 2 && slices * WAKE_INTERVALS * aiotrace_stalls.interval >= idle)
        return GIL;
    return waits->asked_ns > deaf ? C_CALL : BLOCKED;
}

Waits
aiotrace_stall_waits_until(const Slot *slot, uint64_t now)
{
    Waits waits = slot->waits;
    if (slot->waiting.ns) {
        uint64_t ns = since(slot->waiting.ns, now), ran = since(slot->waiting.cpu_ns, read_cpu(slot->thread));
        uint64_t delay_ns, slices;
        read_delay(aiotrace_stalls.sampler, &delay_ns, &slices);
        uint64_t kept = since(slot->waiting.delay_ns, delay_ns);
        waits.count++;
        waits.asked_ns += since(kept, ns);
        waits.held_ns += since(kept, ran);
        if (ns > waits.longest_ns)
            waits.longest_ns = ns;
    }
    return waits;
}

void
aiotrace_stall_begin_waiting(Slot *slot, uint64_t now)
{
    uint64_t slices;
    slot->waiting.ns = now;
    slot->waiting.cpu_ns = read_cpu(slot->thread);
    read_delay(aiotrace_stalls.sampler, &slot->waiting.delay_ns, &slices);
}
