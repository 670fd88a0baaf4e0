/* Faults of a file system, put between a program and the C library by LD_PRELOAD: nothing happens
 * before magmerge_faults_arm() is called, and then only to files below one folder.
 *
 * kind        what happens
 * count       nothing; calls that change the disk are counted, and told in the log
 * kill        the process dies at the `at`th such call, a write after half of its bytes
 * enospc      from the `at`th such call on nothing can be written or made
 * eio-fsync   the `at`th fsync fails
 * eio-read    the `at`th read fails
 * short-read  a read gives at most `at` bytes
 * slow-read   a read takes `at` microseconds
 * change      before the `at`th read the middle of the file is another
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, COUNT, KILL, ENOSPACE, EIO_FSYNC, EIO_READ, SHORT_READ, SLOW_READ, CHANGE };
enum { ROOM = 4096 };
static const char *const NAMES[] = {"",         "count",      "kill",     "enospc",
                                    "eio-fsync", "eio-read", "short-read", "slow-read", "change"};
static int kind = NONE, log_to = -1;
static long place = 0;
static char below[ROOM];
static atomic_long changes, syncs, reads;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int magmerge_faults_arm(const char *what, long at, const char *folder, const char *log) {
    place = at;
    changes = syncs = reads = 0;
    snprintf(below, sizeof below, "%s", folder);
    log_to = log && *log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    for (int i = COUNT; i <= CHANGE; i++)
        if (!strcmp(what, NAMES[i])) return kind = i;
    return kind = NONE;
}

long magmerge_faults_changes(void) { return changes; }
long magmerge_faults_syncs(void) { return syncs; }
long magmerge_faults_reads(void) { return reads; }

static int within(const char *path) {
    size_t length = strlen(below);
    return kind && path && !strncmp(path, below, length) && (path[length] == '/' || !path[length]);
}

/* The path of a name from a folder's handle, or of the handle itself. */
static const char *path_at(int folder, const char *name, char *room) {
    if (name && *name == '/') return name;
    char link[64];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, room, ROOM - 1);
    if (size < 0) return NULL;
    room[size] = 0;
    if (name) snprintf(room + size, ROOM - size, "/%s", name);
    return room;
}

static void tell(const char *what, const char *first, const char *second) {
    if (log_to < 0) return;
    char line[3 * ROOM];
    int size = snprintf(line, sizeof line, "%s\t%s\t%s\n", what, first, second ? second : "");
    syscall(SYS_write, log_to, line, size);
}

/* What is to happen at a call that changes the disk: 0, or the error. `*part` is set where half of
 * a write is still done. */
static int change(const char *what, const char *path, const char *second, int grows, int *part) {
    if (!kind || !(within(path) || within(second))) return 0;
    long now = ++changes;
    if (kind == KILL && now == place) {
        if (part) *part = 1;
        else raise(SIGKILL);
    }
    if (kind == ENOSPACE && now >= place && grows) {
        if (part && now == place) *part = 1;
        return ENOSPC;
    }
    tell(what, path, second);
    return 0;
}

static int failed(int code) {
    errno = code;
    return -1;
}

/* Files that are opened for writing, or made. */
#define OPENING(name, from, path, call)                                                             \
    char room[ROOM];                                                                                \
    mode_t mode = 0;                                                                                \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                          \
        va_list more;                                                                               \
        va_start(more, flags);                                                                      \
        mode = va_arg(more, mode_t);                                                                \
        va_end(more);                                                                               \
    }                                                                                               \
    const char *whole = kind && (flags & (O_CREAT | O_TRUNC)) ? path_at(from, path, room) : NULL;   \
    if (whole && (flags & O_TRUNC || faccessat(from, path, F_OK, 0))) {                             \
        int code = change("create", whole, NULL, 1, NULL);                                          \
        if (code) return failed(code);                                                              \
    }                                                                                               \
    return call;

int open(const char *path, int flags, ...) { OPENING(open, AT_FDCWD, path, NEXT(open)(path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPENING(open64, AT_FDCWD, path, NEXT(open64)(path, flags, mode)) }
int openat(int from, const char *path, int flags, ...) { OPENING(openat, from, path, NEXT(openat)(from, path, flags, mode)) }
int openat64(int from, const char *path, int flags, ...) { OPENING(openat64, from, path, NEXT(openat64)(from, path, flags, mode)) }

/* Another byte in the middle of a file, as by a program that writes it meanwhile. */
static void spoil(const char *path) {
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR, 0);
    if (file < 0) return;
    off_t middle = lseek(file, 0, SEEK_END) / 2;
    unsigned char byte = 0;
    syscall(SYS_pread64, file, &byte, 1, middle);
    byte ^= 0x55;
    syscall(SYS_pwrite64, file, &byte, 1, middle);
    close(file);
}

/* Reads. */
static size_t allowed(int file, size_t size, int *code) {
    char room[ROOM];
    *code = 0;
    if (kind < EIO_READ && kind != COUNT) return size;
    const char *path = path_at(file, NULL, room);
    if (!path || !within(path)) return size;
    long now = ++reads;
    if (kind == EIO_READ && now == place) *code = EIO;
    if (kind == SLOW_READ) usleep(place);
    if (kind == CHANGE && now == place) spoil(path);
    return kind == SHORT_READ && size > (size_t)place ? (size_t)place : size;
}

#define READING(call)                                                                               \
    int code;                                                                                       \
    size = allowed(file, size, &code);                                                              \
    return code ? failed(code) : call;

ssize_t read(int file, void *to, size_t size) { READING(NEXT(read)(file, to, size)) }
ssize_t pread(int file, void *to, size_t size, off_t at) { READING(NEXT(pread)(file, to, size, at)) }
ssize_t pread64(int file, void *to, size_t size, off64_t at) { READING(NEXT(pread64)(file, to, size, at)) }

/* Of many buffers the first alone: a short read. */
#define READING_MANY(name, ...)                                                                     \
    int code;                                                                                       \
    size_t size = allowed(file, count ? parts[0].iov_len : 0, &code);                               \
    if (code) return failed(code);                                                                  \
    if (kind != SHORT_READ || !count) return NEXT(name)(file, parts, count, __VA_ARGS__);           \
    struct iovec first = {parts[0].iov_base, size};                                                 \
    return NEXT(name)(file, &first, 1, __VA_ARGS__);

ssize_t preadv(int file, const struct iovec *parts, int count, off_t at) { READING_MANY(preadv, at) }
ssize_t preadv64(int file, const struct iovec *parts, int count, off64_t at) { READING_MANY(preadv64, at) }
ssize_t preadv2(int file, const struct iovec *parts, int count, off_t at, int flags) { READING_MANY(preadv2, at, flags) }
ssize_t preadv64v2(int file, const struct iovec *parts, int count, off64_t at, int flags) { READING_MANY(preadv64v2, at, flags) }

/* Writes. */
#define WRITING(half, all)                                                                          \
    char room[ROOM];                                                                                \
    int part = 0, code = 0;                                                                         \
    const char *path = kind ? path_at(file, NULL, room) : NULL;                                     \
    if (path) code = change("write", path, NULL, 1, &part);                                         \
    if (part && size > 1) {                                                                         \
        ssize_t done = half;                                                                        \
        if (kind != KILL) return done;                                                              \
    }                                                                                               \
    if (part && kind == KILL) raise(SIGKILL);                                                       \
    return code ? failed(code) : all;

ssize_t write(int file, const void *from, size_t size) { WRITING(NEXT(write)(file, from, size / 2), NEXT(write)(file, from, size)) }
ssize_t pwrite(int file, const void *from, size_t size, off_t at) { WRITING(NEXT(pwrite)(file, from, size / 2, at), NEXT(pwrite)(file, from, size, at)) }
ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) { WRITING(NEXT(pwrite64)(file, from, size / 2, at), NEXT(pwrite64)(file, from, size, at)) }

#define ON_HANDLE(what, grows, refused, call)                                                       \
    char room[ROOM];                                                                                \
    const char *path = kind ? path_at(file, NULL, room) : NULL;                                     \
    int code = path ? change(what, path, NULL, grows, NULL) : 0;                                    \
    return code ? refused : call;

int ftruncate(int file, off_t size) { ON_HANDLE("write", 0, failed(code), NEXT(ftruncate)(file, size)) }
int ftruncate64(int file, off64_t size) { ON_HANDLE("write", 0, failed(code), NEXT(ftruncate64)(file, size)) }
int posix_fallocate(int file, off_t at, off_t size) { ON_HANDLE("write", 1, code, NEXT(posix_fallocate)(file, at, size)) }
int posix_fallocate64(int file, off64_t at, off64_t size) { ON_HANDLE("write", 1, code, NEXT(posix_fallocate64)(file, at, size)) }

#define SYNCING(name)                                                                               \
    char room[ROOM];                                                                                \
    const char *path = kind ? path_at(file, NULL, room) : NULL;                                     \
    if (path && within(path) && ++syncs == place && kind == EIO_FSYNC) return failed(EIO);          \
    if (path) change("fsync", path, NULL, 0, NULL);                                                 \
    return NEXT(name)(file);

int fsync(int file) { SYNCING(fsync) }
int fdatasync(int file) { SYNCING(fdatasync) }

/* Names. */
#define NAMING(what, grows, one, two, call)                                                         \
    char room[ROOM], more[ROOM];                                                                    \
    (void)more;                                                                                     \
    const char *first = kind ? one : NULL, *second = kind ? two : NULL;                             \
    int code = first ? change(what, first, second, grows, NULL) : 0;                                \
    return code ? failed(code) : call;

int rename(const char *old, const char *new) { NAMING("rename", 0, path_at(AT_FDCWD, old, room), path_at(AT_FDCWD, new, more), NEXT(rename)(old, new)) }
int renameat(int from, const char *old, int to, const char *new) { NAMING("rename", 0, path_at(from, old, room), path_at(to, new, more), NEXT(renameat)(from, old, to, new)) }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) { NAMING(flags & RENAME_EXCHANGE ? "exchange" : "rename", 0, path_at(from, old, room), path_at(to, new, more), NEXT(renameat2)(from, old, to, new, flags)) }
int mkdir(const char *path, mode_t mode) { NAMING("mkdir", 1, path_at(AT_FDCWD, path, room), NULL, NEXT(mkdir)(path, mode)) }
int mkdirat(int from, const char *path, mode_t mode) { NAMING("mkdir", 1, path_at(from, path, room), NULL, NEXT(mkdirat)(from, path, mode)) }
int rmdir(const char *path) { NAMING("unlink", 0, path_at(AT_FDCWD, path, room), NULL, NEXT(rmdir)(path)) }
int unlink(const char *path) { NAMING("unlink", 0, path_at(AT_FDCWD, path, room), NULL, NEXT(unlink)(path)) }
int unlinkat(int from, const char *path, int flags) { NAMING("unlink", 0, path_at(from, path, room), NULL, NEXT(unlinkat)(from, path, flags)) }
