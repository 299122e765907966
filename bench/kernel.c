/* The kernel's side of the table: real forks, stores and unmaps, timed where the table says.
 *
 *     kernel SCENARIO [NUMBER...]        prints lines of "name nanoseconds", each for one unit of the row
 *
 * Memory is private, anonymous and MADV_NOHUGEPAGE; faults are one store a page, ascending. Each scenario is done once
 * untimed before it counts. The caller chooses the CPU. What may take longer than a time slice and happens in one thread
 * (stores, fork) is timed by that thread's CPU clock, so that other programs' slices are not in it; the rest is the
 * median of many times of the wall clock.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define SMALL_REGIONS 3
#define SMALL_PAGES 40
#define TRIES 5

static void die(const char *what)
{
	fprintf(stderr, "kernel: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* What this thread has had of the CPU. */
static double cpu(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static volatile char *map(size_t length)
{
	char *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, length, MADV_NOHUGEPAGE);
	return p;
}

static void fill(volatile char *p, size_t length)
{
	for (size_t at = 0; at < length; at += PAGE)
		p[at] = 1;
}

/* Nanoseconds that fill() takes for a page. */
static double timed_fill(volatile char *p, size_t length)
{
	double start = cpu();

	fill(p, length);
	return (cpu() - start) / (double)(length / PAGE);
}

static pid_t make(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	return pid;
}

static void reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		die("waitpid");
}

static double *shared(void)
{
	double *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, int n)
{
	qsort(values, (size_t)n, sizeof(*values), by_size);
	return values[n / 2];
}

/* A child writes every page that it shares with its parent. */
static void cow(size_t length)
{
	volatile char *p = map(length);
	double *result = shared();

	fill(p, length);
	for (int i = 0; i < 2; i++) {
		pid_t pid = make();

		if (!pid) {
			*result = timed_fill(p, length);
			_exit(0);
		}
		reap(pid);
	}
	printf("cow %f\n", *result);
}

/* The parent writes every page again when its child is gone. */
static void reuse(size_t length)
{
	volatile char *p = map(length);
	double result = 0;

	fill(p, length);
	for (int i = 0; i < 2; i++) {
		pid_t pid = make();

		if (!pid)
			_exit(0);
		reap(pid);
		result = timed_fill(p, length);
	}
	printf("reuse %f\n", result);
}

/* First writes. */
static void zero(size_t length)
{
	double result = 0;

	for (int i = 0; i < 2; i++) {
		volatile char *p = map(length);

		result = timed_fill(p, length);
		munmap((void *)p, length);
	}
	printf("zero %f\n", result);
}

/* fork() until it returns in the parent; the end of that child, from the moment it is told until waitpid() returns. */
static void forks(size_t length)
{
	volatile char *p = map(length);
	double began[TRIES + 1], ended[TRIES + 1];

	fill(p, length);
	for (int i = 0; i <= TRIES; i++) {
		int tell[2];
		double start;
		char word = 0;
		pid_t pid;

		if (pipe(tell))
			die("pipe");
		start = cpu();
		pid = make();
		if (!pid) {
			if (read(tell[0], &word, 1) != 1)
				_exit(1);
			_exit(0);
		}
		began[i] = cpu() - start;
		usleep(2000); /* the child reaches its read() */
		start = now();
		if (write(tell[1], &word, 1) != 1)
			die("write");
		reap(pid);
		ended[i] = now() - start;
		close(tell[0]);
		close(tell[1]);
	}
	printf("fork %f\nexit %f\n", median(began + 1, TRIES), median(ended + 1, TRIES));
}

static void map_small(void)
{
	size_t pages[SMALL_REGIONS] = { 20, 10, 10 };

	for (int i = 0; i < SMALL_REGIONS; i++) {
		fill(map(pages[i] * PAGE), pages[i] * PAGE);
		mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* keeps the regions apart */
	}
}

static double *many(size_t n)
{
	double *times = calloc(n, sizeof(*times));

	if (!times)
		die("calloc");
	return times;
}

/* fork, _exit and waitpid of a small process, n times. */
static void small(size_t n)
{
	double *times = many(n);

	map_small();
	for (size_t i = 0; i < n + 20; i++) {
		double start = now();
		pid_t pid = make();

		if (!pid)
			_exit(0);
		reap(pid);
		if (i >= 20)
			times[i - 20] = now() - start;
	}
	printf("small %f\n", median(times, (int)n));
}

/* fork() of a small process until it returns in the parent, while `alive` children of it are; the median of `n`. */
static void alive(size_t living, size_t n)
{
	pid_t *pids = calloc(living + n, sizeof(*pids));
	double *times = many(n);

	if (!pids)
		die("calloc");
	map_small();
	for (size_t i = 0; i < living + n; i++) {
		double start = cpu();

		pids[i] = make();
		if (!pids[i]) {
			pause();
			_exit(0);
		}
		if (i >= living)
			times[i - living] = cpu() - start;
	}
	for (size_t i = 0; i < living + n; i++)
		kill(pids[i], SIGKILL);
	for (size_t i = 0; i < living + n; i++)
		waitpid(pids[i], NULL, 0);
	printf("alive %f\n", median(times, (int)n));
}

/* fork, exec of `path`, its run to the end (ld.so's too) and waitpid, n times. */
static void exec(const char *path, size_t n)
{
	double *times = many(n);

	for (size_t i = 0; i < n + 5; i++) {
		double start = now();
		pid_t pid = make();

		if (!pid) {
			execl(path, path, "-c", ":", (char *)NULL);
			_exit(1);
		}
		reap(pid);
		if (i >= 5)
			times[i - 5] = now() - start;
	}
	printf("exec %f\n", median(times, (int)n));
}

/* mmap of a page, a store to it, munmap, in a process with `nvmas` mappings. */
static void mappings(size_t nvmas, size_t n)
{
	char *p = mmap(NULL, 2 * nvmas * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	double *call = many(n), *fault = many(n);

	if (p == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < nvmas; i += 2) /* every other page is a mapping of its own */
		if (mprotect(p + i * PAGE, PAGE, PROT_READ | PROT_WRITE))
			die("mprotect");
	for (size_t i = 0; i < n + 20; i++) {
		double a = now(), b, c, d;
		volatile char *q = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		b = now();
		*q = 1;
		c = now();
		munmap((void *)q, PAGE);
		d = now();
		if (i >= 20) {
			call[i - 20] = b - a + d - c;
			fault[i - 20] = c - b;
		}
	}
	printf("mmap %f\nfault %f\n", median(call, (int)n), median(fault, (int)n));
}

/* One mmap, and one munmap, of `length` bytes that are resident in between. */
static void unmap(size_t length)
{
	double mapped[TRIES + 1], unmapped[TRIES + 1];

	for (int i = 0; i <= TRIES; i++) {
		double start = cpu();
		volatile char *p =
			mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		mapped[i] = cpu() - start;
		madvise((void *)p, length, MADV_NOHUGEPAGE);
		fill(p, length);
		start = cpu();
		munmap((void *)p, length);
		unmapped[i] = cpu() - start;
	}
	printf("map %f\nunmap %f\n", median(mapped + 1, TRIES), median(unmapped + 1, TRIES));
}

/* fork and exec of `path` (a program that ends at once) by a process with `length` bytes resident. */
static void forkexec(const char *path, size_t length)
{
	volatile char *p = map(length);
	double all[TRIES + 1];

	fill(p, length);
	for (int i = 0; i <= TRIES; i++) {
		double start = now();
		pid_t pid = make();

		if (!pid) {
			execl(path, path, "-c", ":", (char *)NULL);
			_exit(1);
		}
		reap(pid);
		all[i] = now() - start;
	}
	printf("forkexec %f\n", median(all + 1, TRIES));
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";
	size_t a = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
	size_t b = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;

	if (!strcmp(name, "cow"))
		cow(a);
	else if (!strcmp(name, "reuse"))
		reuse(a);
	else if (!strcmp(name, "zero"))
		zero(a);
	else if (!strcmp(name, "forks"))
		forks(a);
	else if (!strcmp(name, "small"))
		small(a);
	else if (!strcmp(name, "alive"))
		alive(a, b);
	else if (!strcmp(name, "exec"))
		exec(argv[2], b);
	else if (!strcmp(name, "mappings"))
		mappings(a, b);
	else if (!strcmp(name, "unmap"))
		unmap(a);
	else if (!strcmp(name, "forkexec"))
		forkexec(argv[2], b);
	else
		return fprintf(stderr, "kernel: no scenario %s\n", name), 2;
	return 0;
}
