/* Loaded before the C library, this makes writing files behave as a disk does on a bad day. What it does stands in the file
 * that CALLREEL_DISK_FAULT names and is looked up at each call: a number of an error to fail with, "slow" and milliseconds
 * that each sync takes, or nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int error_now(int syncs) {
    const char *path = getenv("CALLREEL_DISK_FAULT");
    FILE *file = path ? fopen(path, "r") : NULL;
    int error = 0;
    long millis = 0;
    if (!file)
        return 0;
    if (fscanf(file, "slow %ld", &millis) != 1) {
        rewind(file);
        if (fscanf(file, "%d", &error) != 1)
            error = 0;
    }
    fclose(file);
    if (syncs && millis > 0) {
        struct timespec pause = {millis / 1000, millis % 1000 * 1000000};
        nanosleep(&pause, NULL);
    }
    return error;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    int error = error_now(0);
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, bytes, count, offset);
}

int fdatasync(int fd) {
    int error = error_now(1);
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    int error = error_now(1);
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_fsync, fd);
}
