/* The anchor of the clock (clock.h), the rate of the TSC, and how the kernel's clock is found.
 *
 *     import: first reading ... >= 20 ms ... anchor: the rate is known ... >= 20 ms ... anchor: measured again
 */
#include "common/clock.h"

#include <dlfcn.h>

#if HAVE_TSC
#include <cpuid.h>
#endif

#define WINDOW (UINT64_C(1) << 24)        /* ticks: 5 to 8 milliseconds */
#define MEASURE_NS_MIN UINT64_C(20000000) /* for a few millionths: a reading is off by up to 50 ns */
#define MEASURE_NS_MAX UINT64_C(10000000000)  /* the machine may have slept, which the TSC counts and the clock does not */
#define MEASURE_TICKS_MAX (UINT64_C(1) << 36) /* the same, and that the counter was not set back */
#define CHANGE_MAX_SHIFT 10                   /* of the rate, from one measurement to the next: 1/1024 */
#define APART_MAX 1024                        /* ticks that reading both takes: else something came between */
#define TRIES 3

int (*aiotrace_clock_gettime)(clockid_t, struct timespec *) = clock_gettime;

/* Shared by all threads. Written here, with the GIL held: the anchor often, the rate once measured. */
HOT_DATA TscClock aiotrace_tsc;

#if HAVE_TSC

/* Both clocks at one moment. */
typedef struct {
    uint64_t tick, ns;
} Moment;

static int has_constant_rate; /* written once, at import */
static Moment measured; /* the beginning of the present measurement */

/* The best of a few tries: the thread may lose its processor between two readings. */
static Moment
read_both(void)
{
    Moment best = {0, 0};
    uint64_t best_apart = UINT64_MAX;
    for (int i = 0; i < TRIES && best_apart > APART_MAX; i++) {
        uint64_t before = __rdtsc(), ns = monotonic_ns(), apart = __rdtsc() - before;
        if (apart < best_apart) {
            best = (Moment){before + apart / 2, ns};
            best_apart = apart;
        }
    }
    return best;
}

/* Measure the rate up to now, if enough time has passed since the last measurement. */
static void
measure(Moment now, uint64_t ns_min)
{
    uint64_t ticks = now.tick - measured.tick, ns = now.ns - measured.ns;
    if (ns < ns_min && ticks < MEASURE_TICKS_MAX)
        return;
    int is_usable = ticks != 0 && ticks < MEASURE_TICKS_MAX && ns < MEASURE_NS_MAX;
    uint64_t before = aiotrace_tsc.rate, rate = is_usable ? (uint64_t)(((unsigned __int128)ns << 32) / ticks) : before;
    uint64_t change = rate > before ? rate - before : before - rate;
    measured = now;

    /* More than NTP ever slews: the machine slept, or slept the last time. Measure anew. */
    int is_wrong = before != 0 && change > before >> CHANGE_MAX_SHIFT;
    aiotrace_tsc.rate = is_wrong ? 0 : rate;
    aiotrace_tsc.window = aiotrace_tsc.rate ? WINDOW : 0;
}

#endif

uint64_t
aiotrace_anchor_tsc(void)
{
#if HAVE_TSC
    if (!has_constant_rate)
        return monotonic_ns();

    /* The most that was returned since the last anchor. */
    Moment now = read_both();
    uint64_t ticks = now.tick - aiotrace_tsc.tick, window = aiotrace_tsc.window;
    uint64_t told = aiotrace_tsc.ns + ((ticks < window ? ticks : window) * aiotrace_tsc.rate >> 32);

    measure(now, MEASURE_NS_MIN);
    aiotrace_tsc.tick = now.tick;
    aiotrace_tsc.ns = now.ns > told ? now.ns : told;
    return aiotrace_tsc.ns;
#else
    return monotonic_ns();
#endif
}

uint64_t
aiotrace_monotonic_ns(void)
{
    return monotonic_ns();
}

PyDoc_STRVAR(tsc_calibrate_doc,
             "tsc_calibrate(seconds)\n--\n\n"
             "Measure the time stamp counter against CLOCK_MONOTONIC for that long, unless its rate is known.\n\n"
             "Returns nanoseconds per tick, or 0.0 if this CPU has no counter of constant rate.");

static PyObject *
tsc_calibrate(PyObject *Py_UNUSED(module), PyObject *argument)
{
    double seconds = PyFloat_AsDouble(argument);
    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    if (!(seconds > 0 && seconds <= 1)) {
        PyErr_SetString(PyExc_ValueError, "seconds must be more than 0 and at most 1");
        return NULL;
    }
#if HAVE_TSC
    if (has_constant_rate && aiotrace_tsc.window == 0) {
        Moment began = read_both();
        Py_BEGIN_ALLOW_THREADS
        while (monotonic_ns() - began.ns < (uint64_t)(seconds * 1e9))
            ;
        Py_END_ALLOW_THREADS
        if (aiotrace_tsc.window == 0) { /* else another thread has measured it meanwhile */
            measured = began;
            measure(read_both(), 0);
        }
    }
#endif
    return PyFloat_FromDouble((double)aiotrace_tsc.rate / 4294967296.0);
}

/* libc's clock_gettime calls the kernel's, which vdso(7) maps like a library. A function that
 * replaces libc's (libfaketime) is called in its place, as Python calls it. */
static void
find_clock(void)
{
#if defined(__x86_64__) && defined(__GLIBC__)
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (libc != NULL && vdso != NULL && dlsym(libc, "clock_gettime") == (void *)clock_gettime) {
        void *found = dlsym(vdso, "__vdso_clock_gettime");
        if (found != NULL)
            memcpy(&aiotrace_clock_gettime, &found, sizeof found);
    }
    if (libc != NULL)
        dlclose(libc);
    if (vdso != NULL)
        dlclose(vdso);
#endif
}

static PyMethodDef functions[] = {
    {"tsc_calibrate", tsc_calibrate, METH_O, tsc_calibrate_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_clock_exec(PyObject *module)
{
    find_clock();
#if HAVE_TSC
    unsigned a, b, c, d;
    has_constant_rate = __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & 1u << 8);
    if (measured.tick == 0)
        measured = read_both();
#endif
    return PyModule_AddFunctions(module, functions);
}
