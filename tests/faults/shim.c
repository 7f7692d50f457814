/* Counts the durable operations of processes below one folder, and at the Nth one kills the process or lets it fail;
 * or shows the folder to another process before each operation and in the middle of each write.
 *
 * Loaded with LD_PRELOAD. Durable operations: creating or truncating open, write, fsync, truncate, rename, unlink,
 * mkdir. They are counted over all processes that share a control file, so the Nth operation of a run may be a
 * worker's. A process learns its orders from the environment when it starts, or by edgewise_arm after a fork.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL_BEFORE, KILL_TORN, KILL_AFTER, FAIL, SHORT, STOP, SHOW };

struct control {
    int64_t count;     /* operations so far, of all processes */
    int64_t fired;     /* how often the fault was played */
    int64_t stopped;   /* process id of the one that STOP stopped */
    int64_t shown;     /* SHOW: 1 or 2 while it waits before an operation or in a write, until someone sets 0; -1: go on */
    char last[64];     /* name of the operation at which the fault was played first */
    char kinds[32768]; /* of each operation in turn: 'w' a write that can be torn, '.' one that is whole or not at all */
};

static struct control *control;
static char root[PATH_MAX];
static size_t root_length;
static int64_t at;
static int action, error_number, forever, was_stopped;

static void map_control(const char *path) {
    control = NULL; /* nothing is counted meanwhile */
    int fd = open(path, O_RDWR);
    if (fd < 0) return;
    void *got = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    control = got == MAP_FAILED ? NULL : got;
}

void edgewise_arm(const char *folder, const char *control_path, int64_t n, int what, int error, int from_then_on) {
    map_control(control_path);
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    at = n, action = what, error_number = error, forever = from_then_on;
}

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("EDGEWISE_FAULT_ROOT"), *path = getenv("EDGEWISE_FAULT_CONTROL");
    const char *n = getenv("EDGEWISE_FAULT_AT"), *what = getenv("EDGEWISE_FAULT_ACTION");
    const char *error = getenv("EDGEWISE_FAULT_ERROR"), *always = getenv("EDGEWISE_FAULT_FOREVER");
    if (folder && path && n && what && error && always)
        edgewise_arm(folder, path, atoll(n), atoi(what), atoi(error), atoi(always));
}

static int below(const char *path) {
    return root_length && path && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int path_counts(int folder, const char *path) {
    if (!control || !path) return 0;
    if (path[0] == '/') return below(path);
    char whole[PATH_MAX], link[64], base[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0) return 0;
        base[n] = 0;
    }
    if (snprintf(whole, sizeof whole, "%s/%s", base, path) >= (int)sizeof whole) return 0;
    return below(whole);
}

static int fd_counts(int fd) {
    if (!control) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

/* Wait until who looks at the folder has seen it. */
static void show(int64_t how) {
    int64_t none = 0;
    if (!__atomic_compare_exchange_n(&control->shown, &none, how, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return;
    while (__atomic_load_n(&control->shown, __ATOMIC_SEQ_CST) == how) usleep(100);
}

/* What becomes of this operation: NOTHING, or the fault. */
static int verdict(const char *name, char kind) {
    int64_t n = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (n <= (int64_t)sizeof control->kinds) control->kinds[n - 1] = kind;
    if (action == SHOW) {
        show(1);
        return SHOW;
    }
    if (!at || (forever ? n < at : n != at)) return NOTHING;
    if (!__atomic_fetch_add(&control->fired, 1, __ATOMIC_SEQ_CST)) snprintf(control->last, sizeof control->last, "%s", name);
    if (action == KILL_BEFORE) kill(getpid(), SIGKILL);
    if (action == STOP) {
        if (was_stopped++) return NOTHING;
        __atomic_store_n(&control->stopped, (int64_t)getpid(), __ATOMIC_SEQ_CST);
        kill(getpid(), SIGSTOP);
        return NOTHING;
    }
    return action;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* An operation that is whole or not at all: torn counts as before. */
#define WHOLE(counts, name, call) \
    do { \
        REAL(name); \
        if (!(counts)) return real call; \
        int what = verdict(#name, '.'); \
        if (what == KILL_TORN) kill(getpid(), SIGKILL); \
        if (what == FAIL) { errno = error_number; return -1; } \
        __typeof__(real call) result = real call; \
        if (what == KILL_AFTER) kill(getpid(), SIGKILL); \
        return result; \
    } while (0)

#define WRITE(fd, size, name, all, half, rest) \
    do { \
        REAL(name); \
        if (!fd_counts(fd)) return real all; \
        int what = verdict(#name, (size) > 1 ? 'w' : '.'); \
        if (what == FAIL) { errno = error_number; return -1; } \
        if ((what == SHORT || what == KILL_TORN || what == SHOW) && (size) > 1) { \
            ssize_t part = real half; \
            if (what == KILL_TORN) kill(getpid(), SIGKILL); \
            if (what == SHORT || part < 0) return part; \
            show(2); \
            ssize_t more = real rest; \
            return more < 0 ? part : part + more; \
        } \
        ssize_t result = real all; \
        if (what == KILL_TORN || what == KILL_AFTER) kill(getpid(), SIGKILL); \
        return result; \
    } while (0)

static int creates(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

static mode_t mode_of(int flags, va_list rest) {
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        WHOLE(creates(flags) && path_counts(AT_FDCWD, path), name, (path, flags, mode)); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        WHOLE(creates(flags) && path_counts(folder, path), name, (folder, path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *from, size_t size) {
    WRITE(fd, size, write, (fd, from, size), (fd, from, size / 2), (fd, (const char *)from + part, size - part));
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t where) {
    WRITE(fd, size, pwrite, (fd, from, size, where), (fd, from, size / 2, where),
          (fd, (const char *)from + part, size - part, where + part));
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t where) {
    WRITE(fd, size, pwrite64, (fd, from, size, where), (fd, from, size / 2, where),
          (fd, (const char *)from + part, size - part, where + part));
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    WRITE(fd, n, writev, (fd, parts, n), (fd, parts, n / 2), (fd, parts + n / 2, n - n / 2));
}

int fsync(int fd) { WHOLE(fd_counts(fd), fsync, (fd)); }
int fdatasync(int fd) { WHOLE(fd_counts(fd), fdatasync, (fd)); }
int ftruncate(int fd, off_t size) { WHOLE(fd_counts(fd), ftruncate, (fd, size)); }
int ftruncate64(int fd, off64_t size) { WHOLE(fd_counts(fd), ftruncate64, (fd, size)); }
int truncate(const char *path, off_t size) { WHOLE(path_counts(AT_FDCWD, path), truncate, (path, size)); }
int truncate64(const char *path, off64_t size) { WHOLE(path_counts(AT_FDCWD, path), truncate64, (path, size)); }
int rename(const char *old, const char *new) { WHOLE(path_counts(AT_FDCWD, new), rename, (old, new)); }
int renameat(int a, const char *old, int b, const char *new) { WHOLE(path_counts(b, new), renameat, (a, old, b, new)); }
int unlink(const char *path) { WHOLE(path_counts(AT_FDCWD, path), unlink, (path)); }
int unlinkat(int folder, const char *path, int flags) { WHOLE(path_counts(folder, path), unlinkat, (folder, path, flags)); }
int mkdir(const char *path, mode_t mode) { WHOLE(path_counts(AT_FDCWD, path), mkdir, (path, mode)); }
int mkdirat(int folder, const char *path, mode_t mode) { WHOLE(path_counts(folder, path), mkdirat, (folder, path, mode)); }
