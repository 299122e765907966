/* One process of a program that runs on the real kernel for a comparison (livediff_host.py is its controller).
 *
 * The agent performs one request at a time and replies; between requests it waits. Around every operation it reads its
 * own fault counters, so the counts must be the operation's alone: before each one every page of the agent's image and
 * stack is touched (`warm`), and nothing of the C library that allocates is used. It is linked statically, without
 * RELRO, so that the program headers say everything there is to touch. A fork makes a second agent, on another socket;
 * so does a clone(CLONE_VM), in the same memory but on a stack of its own. Only one agent does anything at a time.
 *
 *     agent CPU THP SOCKET...    THP: 1 if transparent huge pages are allowed; then one connected SOCK_SEQPACKET
 *                                descriptor for each process slot, of which this one is slot 0
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_SLOTS = 8, MAX_PAGES = 1024, STACK = 32 * 1024 };
#define ZEROS_CRC 0xC71C0011u /* of a page of them */
enum { CALL, LOAD, STORE, SWEEP, CHECKSUM, MINCORE, FORK, SHARE, EXIT };

struct request {
	uint64_t what;
	uint64_t args[7];
	uint64_t pages[MAX_PAGES]; /* CHECKSUM: addresses */
};

struct reply {
	int64_t result; /* of a call; the byte of LOAD and STORE; a pid */
	int64_t error;	/* errno, or 0 */
	int64_t signal; /* SIGSEGV or SIGBUS, or 0 */
	int64_t code;
	uint64_t address; /* si_addr */
	int64_t minor, major;
	int64_t count; /* of values below */
	uint32_t values[MAX_PAGES];
};

extern const Elf64_Ehdr __ehdr_start;

static struct request request;
static struct reply reply;
static struct rusage usage;
static uint32_t crc_table[8][256]; /* [i][b]: of byte b with i bytes of zeros behind it */
static unsigned char alternate_stack[STACK] __attribute__((aligned(PAGE)));
static unsigned char sharers_stacks[MAX_SLOTS][STACK] __attribute__((aligned(PAGE)));
static unsigned char residency[MAX_PAGES];
static unsigned char own_page[PAGE] __attribute__((aligned(PAGE)));
static unsigned char wide[64 * PAGE] __attribute__((aligned(PAGE)));
static const unsigned char zeros[PAGE] __attribute__((aligned(PAGE)));
static int sockets[MAX_SLOTS];
static sigjmp_buf after_signal;
static volatile sig_atomic_t armed;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (!armed)
		_exit(99); /* a bug of ours */
	armed = 0;
	reply.signal = number;
	reply.code = info->si_code;
	reply.address = (uint64_t)info->si_addr;
	siglongjmp(after_signal, 1);
}

static void on_nothing(int number)
{
	(void)number;
}

/* A system call without errno, which lies in thread-local storage: -errno on failure. */
static inline long raw_syscall(long number, const uint64_t *args)
{
	register uint64_t r10 __asm__("r10") = args[3];
	register uint64_t r8 __asm__("r8") = args[4];
	register uint64_t r9 __asm__("r9") = args[5];
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(args[0]), "S"(args[1]), "d"(args[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static inline unsigned char load(const unsigned char *at)
{
	unsigned char byte;
	__asm__ volatile("movb (%1), %0" : "=q"(byte) : "r"(at) : "memory");
	return byte;
}

static inline void store(unsigned char *at, unsigned char byte)
{
	__asm__ volatile("movb %1, (%0)" : : "r"(at), "q"(byte) : "memory");
}

/* Undo what is the CPU's own. Translations: the kernel leaves a stale read-only one when it makes a page writable
 * (POPULATE_WRITE, say), and the store that meets it takes a fault more: or not, if it was evicted meanwhile. Batches of
 * frames on their way to an LRU list: they hold references, so that a write copies a frame that it could reuse. */
static void settle(void)
{
	syscall(SYS_mprotect, wide, sizeof wide, PROT_READ); /* more than the pages that are flushed one by one (33) */
	syscall(SYS_mprotect, wide, sizeof wide, PROT_READ | PROT_WRITE);
	if (syscall(SYS_madvise, wide, PAGE, MADV_COLD) !=
	    0) {				  /* begins with lru_add_drain(), unless the page is locked */
		syscall(SYS_munlock, wide, PAGE); /* by mlockall */
		syscall(SYS_madvise, wide, PAGE, MADV_COLD);
	}
}

/* Every page of image and stack present, the writable ones written: they are shared copy-on-write after each fork. */
static void __attribute__((noinline)) warm(void)
{
	const unsigned char *base = (const unsigned char *)&__ehdr_start;
	const Elf64_Phdr *segment = (const Elf64_Phdr *)(base + __ehdr_start.e_phoff);
	unsigned char below[STACK / 2];
	for (size_t i = 0; i < sizeof below; i += PAGE)
		store(below + i, 0);
	unsigned char *frame = __builtin_frame_address(0); /* the callers' frames lie just above */
	store(frame + 256, load(frame + 256));
	errno = 0; /* and thread-local storage */
	for (int i = 0; i < __ehdr_start.e_phnum; i++) {
		if (segment[i].p_type != PT_LOAD)
			continue;
		unsigned char *at = (unsigned char *)(segment[i].p_vaddr & ~(uint64_t)(PAGE - 1));
		for (; at < (unsigned char *)(segment[i].p_vaddr + segment[i].p_memsz); at += PAGE) {
			unsigned char byte = load(at);
			if (segment[i].p_flags & PF_W)
				store(at, byte);
		}
	}
}

static void count_faults(int64_t sign)
{
	syscall(SYS_getrusage, RUSAGE_SELF, &usage);
	reply.minor += sign * usage.ru_minflt;
	reply.major += sign * usage.ru_majflt;
}

/* One access; what it led to is in `reply`. */
static void __attribute__((noinline)) access_byte(unsigned char *at, int write, unsigned char value)
{
	volatile unsigned char byte = value;
	memset(&reply, 0, offsetof(struct reply, values));
	count_faults(-1);
	if (sigsetjmp(after_signal, 1) == 0) {
		armed = 1;
		if (write)
			store(at, byte);
		else
			byte = load(at);
		armed = 0;
		reply.result = byte;
	}
	count_faults(1);
}

static void call(void)
{
	count_faults(-1);
	long result = raw_syscall((long)request.args[0], request.args + 1);
	count_faults(1);
	if (result < 0 && result >= -4095)
		reply.error = -result;
	else
		reply.result = result;
}

/* Eight bytes at a time; most pages hold zeros. */
static uint32_t checksum(const unsigned char *page)
{
	uint32_t crc = ~0u;
	if (!memcmp(page, zeros, PAGE))
		return ZEROS_CRC;
	for (const uint32_t *word = (const uint32_t *)page; word < (const uint32_t *)(page + PAGE); word += 2) {
		uint32_t low = word[0] ^ crc, high = word[1];
		crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255] ^
		      crc_table[4][low >> 24] ^ crc_table[3][high & 255] ^ crc_table[2][high >> 8 & 255] ^
		      crc_table[1][high >> 16 & 255] ^ crc_table[0][high >> 24];
	}
	return ~crc;
}

static void fill_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
		crc_table[0][i] = crc;
	}
	for (int zeros = 1; zeros < 8; zeros++)
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t shorter = crc_table[zeros - 1][i];
			crc_table[zeros][i] = shorter >> 8 ^ crc_table[0][shorter & 255];
		}
}

static void sweep(unsigned char *at, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		access_byte(at + i * PAGE, 0, 0);
		reply.values[i] =
			reply.signal ? (uint32_t)(reply.signal << 16 | reply.code << 8) : (uint32_t)reply.result;
	}
	memset(&reply, 0, offsetof(struct reply, values));
	reply.count = (int64_t)count;
}

static void send_reply(int slot)
{
	size_t size = offsetof(struct reply, values) + (size_t)reply.count * sizeof reply.values[0];
	if (syscall(SYS_sendto, sockets[slot], &reply, size, 0, 0, 0) != (long)size)
		_exit(98);
}

/* Slot of the agent that goes on here. */
static int fork_agent(int slot, int child)
{
	memset(&reply, 0, offsetof(struct reply, values));
	int64_t pid = syscall(SYS_fork);
	if (pid == 0) {
		slot = child;
		pid = syscall(SYS_getpid);
	} else if (pid < 0) {
		reply.error = errno;
	}
	reply.result = pid;
	return slot;
}

static void use_alternate_stack(void)
{
	stack_t alternate = { .ss_sp = alternate_stack, .ss_size = sizeof alternate_stack };
	sigaltstack(&alternate, NULL);
}

static void serve(int slot);

/* Waits to be called, because until then its parent uses what is static. */
static int begin_sharer(void *slot)
{
	uint64_t call;
	if (syscall(SYS_recvfrom, sockets[(intptr_t)slot], &call, sizeof call, 0, 0, 0) <= 0)
		return 0;
	use_alternate_stack();
	memset(&reply, 0, offsetof(struct reply, values));
	reply.result = syscall(SYS_getpid);
	serve((int)(intptr_t)slot);
	return 0;
}

/* On a stack that nobody in this memory uses. */
static void share(int child, uint64_t stack)
{
	reply.result = clone(begin_sharer, sharers_stacks[stack] + STACK, CLONE_VM | SIGCHLD, (void *)(intptr_t)child);
	if (reply.result < 0)
		reply.error = errno;
}

static void perform(void)
{
	memset(&reply, 0, offsetof(struct reply, values));
	switch (request.what) {
	case CALL:
		call();
		break;
	case LOAD:
	case STORE:
		access_byte(own_page, 1, 0);
		raise(SIGUSR1); /* the way through a handler is warm, too */
		access_byte((unsigned char *)request.args[0], request.what == STORE, (unsigned char)request.args[1]);
		break;
	case SWEEP:
		sweep((unsigned char *)request.args[0], request.args[1]);
		break;
	case CHECKSUM:
		reply.count = (int64_t)request.args[0];
		for (uint64_t i = 0; i < request.args[0]; i++)
			reply.values[i] = checksum((const unsigned char *)request.pages[i]);
		break;
	case MINCORE:
		if (syscall(SYS_mincore, request.args[0], request.args[1], residency) != 0) {
			reply.error = errno;
			break;
		}
		reply.count = (int64_t)((request.args[1] + PAGE - 1) / PAGE);
		for (int64_t i = 0; i < reply.count; i++)
			reply.values[i] = residency[i] & 1;
		break;
	case SHARE:
		share((int)request.args[0], request.args[1]);
		break;
	default:
		_exit(request.what == EXIT ? 0 : 97);
	}
}

/* Performs requests and replies, beginning with a reply. */
static void serve(int slot)
{
	for (;;) {
		settle(); /* before the reply, so that the controller sees it */
		warm();
		send_reply(slot);
		if (syscall(SYS_recvfrom, sockets[slot], &request, sizeof request, 0, 0, 0) <= 0)
			return; /* the controller is gone */
		warm();
		settle();
		if (request.what == FORK)
			slot = fork_agent(slot, (int)request.args[0]);
		else
			perform();
	}
}

int main(int argc, char **argv)
{
	for (int i = 3; i < argc && i - 3 < MAX_SLOTS; i++)
		sockets[i - 3] = atoi(argv[i]);
	fill_crc_table();
	cpu_set_t cpu;
	CPU_ZERO(&cpu);
	CPU_SET(argc > 1 ? atoi(argv[1]) : 0, &cpu);
	sched_setaffinity(0, sizeof cpu, &cpu);
	prctl(PR_SET_THP_DISABLE, argc > 2 && atoi(argv[2]) == 0, 0, 0, 0);
	use_alternate_stack();
	struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	struct sigaction nothing = { .sa_handler = on_nothing, .sa_flags = SA_ONSTACK };
	sigaction(SIGUSR1, &nothing, NULL);
	struct sigaction unwaited = { .sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT };
	sigaction(SIGCHLD, &unwaited, NULL);

	reply.result = getpid();
	serve(0);
	return 0;
}
