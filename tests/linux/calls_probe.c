/* Carries out system calls on the kernel of this host and says what came of them. See calls_host.py.
 *
 * Usage: calls_probe DIRECTORY < script, DIRECTORY on a file system that wants to hear of first writes (ext4).
 * The script is of 64-bit words: for each case the number of its steps, then seven words a step: a call and six arguments.
 * Calls from 1000 on are the probe's own (enum step). Each case runs in a child of its own, which prints
 *     c            once, then a line for each step:
 *     r RESULT     of a call: what the kernel returned (-errno on failure)
 *     s SIG CODE   an access that ended in a signal, survived
 *     v HEX        bytes of the scratch memory (STEP_BYTES)
 *     m / e        /proc/self/smaps and status between them, unless it died before; `k SIGNAL` then
 * There is no libc here, so the process has nothing but its text, its data and its stack: no heap, no vdso, no threads.
 */
#include <asm/sigcontext.h>
#include <asm/siginfo.h>
#include <asm/signal.h>
#include <asm/ucontext.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/resource.h>
#include <stddef.h>
#include <stdint.h>

enum step {
	STEP_READ = 1000, /* one byte at the address */
	STEP_WRITE,
	STEP_BYTES, /* prints that many bytes of the scratch memory */
	STEP_LIMIT, /* setrlimit(resource, soft, hard) */
	STEP_FORK,  /* the child goes on with the case, the parent waits and says nothing more */
};

#define SA_RESTORER 0x04000000
#define SCRATCH 65536
#define SCRATCH_HERE 0x5c5c5c5c5c5c000 /* as an argument: the address of the scratch memory */

static unsigned char scratch[SCRATCH] __attribute__((aligned(4096)));
static unsigned char altstack[16384] __attribute__((aligned(4096)));
static volatile long fault_signal, fault_code;

static long call(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

void *memset(void *to, int byte, size_t n)
{
	for (volatile unsigned char *p = to; n--; p++)
		*p = (unsigned char)byte;
	return to;
}

static void put(const char *text, size_t n)
{
	(void)call(__NR_write, 1, (long)text, (long)n, 0, 0, 0);
}

static void number(char kind, long value, int second, long more)
{
	char line[64], digits[24];
	int n = 0, k = 0;

	line[n++] = kind;
	for (int i = 0; i <= second; i++, value = more) {
		unsigned long left = value < 0 ? 0 - (unsigned long)value : (unsigned long)value;

		line[n++] = ' ';
		if (value < 0)
			line[n++] = '-';
		do
			digits[k++] = (char)('0' + left % 10);
		while (left /= 10);
		while (k)
			line[n++] = digits[--k];
	}
	line[n++] = '\n';
	put(line, (size_t)n);
}

/* One byte in or out; where the handler goes on after a fault. */
long probe_read(const volatile void *at);
long probe_write(volatile void *at, long byte);
extern const char probe_failed[];
void probe_return(void);
__asm__("probe_read: movzbl (%rdi), %eax\n ret\n"
	"probe_write: movb %sil, (%rdi)\n xorl %eax, %eax\n ret\n"
	"probe_failed: movq $-1, %rax\n ret\n"
	"probe_return: movl $15, %eax\n syscall\n");

static void on_fault(int signal, siginfo_t *info, void *context)
{
	struct ucontext *u = context;

	if (u->uc_mcontext.rip < (unsigned long)probe_read || u->uc_mcontext.rip > (unsigned long)probe_failed)
		(void)call(__NR_kill, call(__NR_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0); /* our own */
	fault_signal = signal;
	fault_code = info->si_code;
	u->uc_mcontext.rip = (unsigned long)probe_failed;
}

static void catch(int signal)
{
	struct {
		void (*handler)(int, siginfo_t *, void *);
		unsigned long flags;
		void (*restorer)(void);
		unsigned long mask;
	} action = { on_fault, SA_SIGINFO | SA_ONSTACK | SA_RESTORER, probe_return, 0 };

	(void)call(__NR_rt_sigaction, signal, (long)&action, 0, 8, 0, 0);
}

static void touch(long at, int write)
{
	long value;

	fault_signal = 0;
	value = write ? probe_write((void *)at, 0x5a) : probe_read((void *)at);
	if (fault_signal)
		number('s', fault_signal, 1, fault_code);
	else
		number('r', value, 0, 0);
}

static void bytes(const unsigned char *at, long n)
{
	static const char hex[] = "0123456789abcdef";

	put("v ", 2);
	for (long i = 0; i < n; i++) {
		char pair[2] = { hex[at[i] >> 4], hex[at[i] & 15] };

		put(pair, 2);
	}
	put("\n", 1);
}

static void copy(const char *path)
{
	long fd = call(__NR_open, (long)path, O_RDONLY, 0, 0, 0, 0), n;

	while ((n = call(__NR_read, fd, (long)scratch, SCRATCH, 0, 0, 0)) > 0)
		put((char *)scratch, (size_t)n);
	(void)call(__NR_close, fd, 0, 0, 0, 0, 0);
}

static void wait_for(long child)
{
	int status = 0;

	(void)call(__NR_wait4, child, (long)&status, 0, 0, 0, 0);
	if (status & 0x7f)
		number('k', status & 0x7f, 0, 0);
}

static void step(const long *s)
{
	long a[6];

	switch (s[0]) {
	case STEP_READ:
	case STEP_WRITE:
		touch(s[1], s[0] == STEP_WRITE);
		return;
	case STEP_BYTES:
		bytes(scratch, s[1]);
		return;
	case STEP_LIMIT:
		number('r', call(__NR_prlimit64, 0, s[1], (long)&s[2], 0, 0, 0), 0, 0);
		return;
	case STEP_FORK:
		a[0] = call(__NR_fork, 0, 0, 0, 0, 0, 0);
		if (a[0] < 0)
			number('r', a[0], 0, 0);
		if (a[0] > 0) {
			wait_for(a[0]);
			(void)call(__NR_exit, 0, 0, 0, 0, 0, 0);
		}
		if (!a[0])
			number('r', 0, 0, 0);
		return;
	default:
		for (int i = 0; i < 6; i++)
			a[i] = s[1 + i] == SCRATCH_HERE ? (long)scratch : s[1 + i];
		number('r', call(s[0], a[0], a[1], a[2], a[3], a[4], a[5]), 0, 0);
	}
}

static long take(void *into, long n)
{
	long done = 0, got;

	while (done < n && (got = call(__NR_read, 0, (long)into + done, n - done, 0, 0, 0)) > 0)
		done += got;
	return done;
}

#define STEPS 256
static long script[STEPS][7];

/* Files of each case: 3 to 5 one in memory, open for both, for reading, for writing; 6 and 7 one on disk, for both and for
 * reading; 8 a directory; 9 a pipe; 10 a device that cannot be mapped. */
static void open_files(const char *directory)
{
	static const char self[] = "/proc/self/fd/3";
	char disk[] = "/proc/self/fd/6";
	int pipe[2];

	(void)call(__NR_open, (long)"/dev/shm", O_RDWR | __O_TMPFILE | O_DIRECTORY, 0600, 0, 0, 0);
	(void)call(__NR_open, (long)self, O_RDONLY, 0, 0, 0, 0);
	(void)call(__NR_open, (long)self, O_WRONLY, 0, 0, 0, 0);
	(void)call(__NR_open, (long)directory, O_RDWR | __O_TMPFILE | O_DIRECTORY, 0600, 0, 0, 0);
	(void)call(__NR_open, (long)disk, O_RDONLY, 0, 0, 0, 0);
	(void)call(__NR_open, (long)"/", O_RDONLY | O_DIRECTORY, 0, 0, 0, 0);
	(void)call(__NR_pipe, (long)pipe, 0, 0, 0, 0, 0);
	(void)call(__NR_open, (long)"/dev/null", O_RDWR, 0, 0, 0, 0);
	(void)call(__NR_dup2, 11, 10, 0, 0, 0, 0);
	(void)call(__NR_ftruncate, 3, 5 * 4096 + 100, 0, 0, 0, 0);
	(void)call(__NR_ftruncate, 6, 5 * 4096 + 100, 0, 0, 0, 0);
}

static void run(long nsteps, const char *directory)
{
	long child = call(__NR_fork, 0, 0, 0, 0, 0, 0);

	if (child) {
		wait_for(child);
		return;
	}
	(void)call(__NR_alarm, 10, 0, 0, 0, 0, 0);
	open_files(directory);
	put("c\n", 2);
	for (long i = 0; i < nsteps; i++)
		step(script[i]);
	put("m\n", 2);
	copy("/proc/self/smaps");
	copy("/proc/self/status");
	put("e\n", 2);
	(void)call(__NR_exit, 0, 0, 0, 0, 0, 0);
}

/* The kernel's own mappings go: vdso and what belongs to it. */
static void drop_kernel_mappings(unsigned long *sp)
{
	unsigned long *p = sp + 1 + *sp + 1;

	while (*p++)
		;
	for (; p[0]; p += 2)
		if (p[0] == 33) /* AT_SYSINFO_EHDR: the vdso; what it reads lies below */
			(void)call(__NR_munmap, (long)(p[1] - 16 * 4096), 20 * 4096, 0, 0, 0, 0);
}

__attribute__((used, noreturn)) static void begin(unsigned long *sp)
{
	struct {
		void *at;
		int flags;
		size_t size;
	} stack = { altstack, 0, sizeof(altstack) };
	long n;

	drop_kernel_mappings(sp);
	/* A CPU with protection keys makes what may only be executed unreadable, with a key that is free. vmemu has none. */
	while (call(__NR_pkey_alloc, 0, 0, 0, 0, 0, 0) > 0)
		;
	(void)call(__NR_sigaltstack, (long)&stack, 0, 0, 0, 0, 0);
	catch(SIGSEGV);
	catch(SIGBUS);
	while (take(&n, 8) == 8 && n <= STEPS && take(script, n * 56) == n * 56)
		run(n, (const char *)sp[2]);
	(void)call(__NR_exit, 0, 0, 0, 0, 0, 0);
	__builtin_unreachable();
}

__asm__(".globl _start\n_start: movq %rsp, %rdi\n andq $-16, %rsp\n call begin\n");
