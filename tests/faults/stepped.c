/* Loaded before libc: the time of day jumps by $STEP_SECONDS once the file $STEP_WHEN is there, as when a clock is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    const char *when = getenv("STEP_WHEN"), *seconds = getenv("STEP_SECONDS");
    if (result == 0 && clock == CLOCK_REALTIME && when && seconds && access(when, F_OK) == 0)
        time->tv_sec += atoi(seconds);
    return result;
}
