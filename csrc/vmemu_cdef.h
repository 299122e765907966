/* The border between Python and C, declared once: this file is compiled with the core and read verbatim by cffi.
 *
 * Only declarations that cffi parses: no includes, no conditionals, no attributes.
 *
 * Conventions, for every function here:
 *   - `m` is a machine made by vmemu_machine_new and not yet freed; every call takes the machine's lock.
 *   - spaces and objects are named by small positive integers; an unknown one is -EBADF.
 *   - returns 0 (or a non-negative result where said) or -errno; out-parameters are untouched on failure. What fails for want of
 *     a frame, not of the host's memory, returns -VMEMU_NO_FRAME instead of -ENOMEM, and for want of
 *     one that a cgroup may have, -VMEMU_NO_FRAME - its id.
 *   - addresses and lengths are bytes; `pfn` is the index of a 4 KiB frame; counts of pages say so.
 *   - nothing here calls back. An access that needs a decision stops with a positive VMEMU_TRAP_* and says in
 *     `struct vmemu_trap` where; the caller acts and calls again for the rest.
 */

#define VMEMU_NKINDS 14
#define VMEMU_NWORDS 14
#define VMEMU_NWORDS_INHERITED 12 /* those that a fork's child has too; the others are 0 there */
#define VMEMU_NO_FRAME 4096
/* Of a short access: it stopped where a decision is needed. */
#define VMEMU_STOPPED 255

/* What one access led to; the values are FaultKind's of vmemu/types.py. */
enum vmemu_kind {
	VMEMU_NONE = 0,
	VMEMU_SPURIOUS = 1,
	VMEMU_ZERO_MAP = 2,
	VMEMU_ZERO_FILL = 3,
	VMEMU_FILE_MINOR = 4,
	VMEMU_FILE_MAJOR = 5,
	VMEMU_SHM_FILL = 6,
	VMEMU_COW_COPY = 7,
	VMEMU_COW_REUSE = 8,
	VMEMU_SWAP_IN = 9,
	VMEMU_SEGV_MAPERR = 10,
	VMEMU_SEGV_ACCERR = 11,
	VMEMU_BUS_ADRERR = 12,
	VMEMU_OOM = 13
};

/* What /proc/vmstat counts since boot, other than by kind of fault. New events go before VMEMU_NEVENTS. */
enum vmemu_event {
	VMEMU_EV_PGALLOC = 0, /* frames taken, page tables and the zero page included */
	VMEMU_EV_PGFREE = 1,  /* frames given back */
	VMEMU_EV_PGREUSE = 2, /* write faults resolved in place (wp_page_reuse()) */
	VMEMU_EV_THP_FAULT_ALLOC = 3,
	VMEMU_EV_THP_FAULT_FALLBACK = 4,
	VMEMU_EV_THP_COLLAPSE_ALLOC = 5,
	VMEMU_EV_THP_SPLIT_PAGE = 6,
	VMEMU_EV_THP_DEFERRED_SPLIT_PAGE = 7,
	VMEMU_EV_THP_SPLIT_PMD = 8,
	VMEMU_EV_THP_ZERO_PAGE_ALLOC = 9,
	VMEMU_EV_PGLAZYFREE = 10,  /* frames marked by MADV_FREE */
	VMEMU_EV_PGLAZYFREED = 11, /* of those, the ones reclaimed */
	VMEMU_EV_COW_KSM = 12,	   /* merged pages copied */
	VMEMU_NEVENTS = 13
};

/* GUP_WRITE, for touch only: a write by the kernel on behalf of the process (populate, mlock), which leaves page-cache
 * pages dirty for everybody who maps them, not just in this space's entry. */
enum vmemu_access { VMEMU_READ = 0, VMEMU_WRITE = 1, VMEMU_FETCH = 2, VMEMU_GUP_WRITE = 3 };

/* Why an access stopped before its end. */
enum vmemu_trap_reason {
	VMEMU_TRAP_FAULT = 1, /* fatal: `kind` says which signal or OOM */
	VMEMU_TRAP_PAGE = 2,  /* page `index` of `object` is not in memory: fill it */
	VMEMU_TRAP_STACK = 3, /* below a stack: grow it or treat as SEGV_MAPERR */
	VMEMU_TRAP_PAUSE = 4, /* time slice used up: call again */
	VMEMU_TRAP_CALL = 5,  /* the next record of a trace is a system call */
	VMEMU_TRAP_SWAP =
		6, /* the page is on the swap device and not in memory: in slot `index`, or page `index` of `object` */
	VMEMU_TRAP_RECLAIM =
		7, /* fewer frames are free than should be, or cgroup `object` is beyond its `high`: reclaim some */
	VMEMU_TRAP_FRAMES = 8, /* no frame is left, with VMEMU_OPT_RELIEVE */
	VMEMU_TRAP_CHARGE = 9  /* memory cgroup `object` is at its limit */
};

struct vmemu_trap {
	uint64_t address; /* first byte that was not accessed */
	uint64_t done;	  /* bytes (read, write), pages (touch) or accesses (access) completed by this call */
	uint64_t index;	  /* TRAP_PAGE: page index in the object; TRAP_SWAP: the same, or the slot */
	uint32_t
		object; /* TRAP_PAGE; TRAP_SWAP: 0 for anonymous memory; TRAP_CHARGE, TRAP_RECLAIM: the cgroup, or 0; TRAP_FRAMES: 0 */
	uint32_t kind;	 /* TRAP_FAULT: enum vmemu_kind */
	uint32_t access; /* TRAP_PAGE, TRAP_STACK: enum vmemu_access, GUP_WRITE as WRITE */
};

/* What a record of a trace does: an access of enum vmemu_access, or a system call, which is the caller's to make. The values
 * are Operation's of vmemu/types.py. */
enum vmemu_operation {
	VMEMU_OP_READ = 0,
	VMEMU_OP_WRITE = 1,
	VMEMU_OP_FETCH = 2,
	VMEMU_OP_SPAWN = 3,
	VMEMU_OP_FORK = 4,
	VMEMU_OP_EXIT = 5,
	VMEMU_OP_WAIT = 6,
	VMEMU_OP_MMAP = 7,
	VMEMU_OP_MMAP_SHARED = 8,
	VMEMU_OP_MUNMAP = 9,
	VMEMU_NOPERATIONS = 10
};

/* One record of a trace. `pid` is a label: the trace chooses it, a table of the caller's says which space it is. */
struct vmemu_record {
	uint64_t address; /* FORK: the child's label; EXIT: the code */
	uint64_t size;	  /* bytes */
	uint32_t pid;
	uint32_t operation; /* enum vmemu_operation */
};

/* How far a run of a trace is; zeros at the start. */
struct vmemu_run {
	uint64_t at;	/* records done */
	uint64_t bytes; /* of the next one, done */
	uint32_t worst; /* greatest enum vmemu_kind of these */
};

/* What is wrong with a record. */
enum vmemu_bad_record {
	VMEMU_BAD_OPERATION = 1, /* there is no such */
	VMEMU_BAD_LABEL = 2,	 /* not below nlabels */
	VMEMU_BAD_PID = 3,	 /* nobody alive has that label */
	VMEMU_BAD_CHILD = 4,	 /* somebody alive has the label of who is to be born */
	VMEMU_BAD_SIZE = 5,	 /* 0 */
	VMEMU_BAD_ADDRESS = 6	 /* of a mapping: not page aligned, or beyond the user half */
};

/* How a space is made in one piece: mappings, in order and as they are (none merges with another); the words; what is then
 * written, and which ranges, each inside one mapping, have other flags after that. */
struct vmemu_write {
	uint64_t address;
	uint64_t length;
	const void *data;
};

struct vmemu_change {
	uint64_t start;
	uint64_t end;
	uint64_t flags;
};

struct vmemu_pattern {
	const struct vmemu_vma *vmas;
	const struct vmemu_write *writes;
	const struct vmemu_change *changes;
	uint32_t nvmas;
	uint32_t nwrites;
	uint32_t nchanges;
	uint64_t words[VMEMU_NWORDS];
};

struct vmemu_built {
	struct vmemu_trap trap;
	uint32_t space;
	uint32_t written; /* writes that are done */
};

enum vmemu_fork_mode { VMEMU_FORK_EAGER = 0, VMEMU_FORK_COW = 1, VMEMU_FORK_ON_DEMAND = 2 };

/* Options of a machine: what a mechanism buys can be measured by leaving it out. */
enum vmemu_option {
	VMEMU_OPT_ZERO_PAGE = 1,   /* anonymous reads map one shared frame of zeros */
	VMEMU_OPT_REUSE = 2,	   /* the last owner of a frame writes it in place */
	VMEMU_OPT_CONTENTS = 4,	   /* data pages hold bytes */
	VMEMU_OPT_THP_MADVISE = 8, /* transparent huge pages where a mapping asks for them */
	VMEMU_OPT_THP_ALWAYS = 16, /* and where it does not refuse them */
	VMEMU_OPT_SOFT_DIRTY = 32, /* pagemap shows what is soft-dirty */
	VMEMU_OPT_RELIEVE =
		64 /* an access that finds no frame stops with VMEMU_TRAP_FRAMES instead of being a fatal fault */
};

/* VMA flags, at Linux's bit positions (include/linux/mm.h). */
#define VMEMU_VM_READ 0x1
#define VMEMU_VM_WRITE 0x2
#define VMEMU_VM_EXEC 0x4
#define VMEMU_VM_SHARED 0x8
#define VMEMU_VM_MAYREAD 0x10
#define VMEMU_VM_MAYWRITE 0x20
#define VMEMU_VM_MAYEXEC 0x40
#define VMEMU_VM_MAYSHARE 0x80
#define VMEMU_VM_GROWSDOWN 0x100
#define VMEMU_VM_MAYBE_GUARD 0x800
#define VMEMU_VM_LOCKED 0x2000
#define VMEMU_VM_SEQ_READ 0x8000
#define VMEMU_VM_RAND_READ 0x10000
#define VMEMU_VM_DONTCOPY 0x20000
#define VMEMU_VM_DONTEXPAND 0x40000
#define VMEMU_VM_LOCKONFAULT 0x80000
#define VMEMU_VM_ACCOUNT 0x100000
#define VMEMU_VM_NORESERVE 0x200000
#define VMEMU_VM_HUGETLB 0x400000
#define VMEMU_VM_SYNC 0x800000
#define VMEMU_VM_WIPEONFORK 0x2000000
#define VMEMU_VM_DONTDUMP 0x4000000
#define VMEMU_VM_SOFTDIRTY 0x8000000
#define VMEMU_VM_HUGEPAGE 0x20000000
#define VMEMU_VM_NOHUGEPAGE 0x40000000
#define VMEMU_VM_MERGEABLE 0x80000000
#define VMEMU_VM_SEALED 0x100000000
#define VMEMU_VM_DROPPABLE 0x10000000000

/* Our own, above Linux's: what mmap_region() and fork know of a mapping of pool pages by other means. */
#define VMEMU_VM_GIANT 0x1000000000000000	  /* with HUGETLB: pages of 1 GiB */
#define VMEMU_VM_POOL_OWNER 0x2000000000000000	  /* its private pages are reserved (HPAGE_RESV_OWNER) */
#define VMEMU_VM_POOL_UNMAPPED 0x4000000000000000 /* the owner took pages from it (HPAGE_RESV_UNMAPPED) */

/* One mapping [start, end). */
struct vmemu_vma {
	uint64_t start;
	uint64_t end;
	uint64_t pgoff;	 /* page index in the object; for private anonymous memory the page number at creation */
	uint64_t flags;	 /* VMEMU_VM_* */
	uint64_t anon;	 /* identity shared by mergeable anonymous memory, 0 before the first anonymous frame */
	uint32_t object; /* 0: private anonymous */
	uint32_t tag;	 /* the caller's word (an open file, say); mappings with different tags do not merge */
};

/* Sums over the mappings of a space, in pages, as the kernel keeps them in mm_struct. */
struct vmemu_sums {
	uint64_t total;	  /* total_vm */
	uint64_t data;	  /* data_vm: private, writable, not a stack */
	uint64_t exec;	  /* exec_vm: executable, not writable, not a stack */
	uint64_t stack;	  /* stack_vm */
	uint64_t locked;  /* locked_vm */
	uint64_t account; /* charged to Committed_AS */
	uint64_t nvmas;	  /* mappings */
	uint64_t special; /* mappings that fork treats specially: DONTCOPY, WIPEONFORK, LOCKED, POOL_OWNER */
	uint64_t pool[2]; /* reserved in the pools of huge pages of 2 MiB and 1 GiB by mappings with POOL_OWNER */
};

/* What a system call on mappings asks first. */
struct vmemu_survey {
	struct vmemu_sums sums;
	uint64_t words[14]; /* VMEMU_NWORDS */
};

struct vmemu_space_info {
	struct vmemu_sums sums;
	uint64_t anon; /* resident pages by kind */
	uint64_t file;
	uint64_t shmem;
	uint64_t hugetlb; /* pages of 4 KiB in huge pages of a pool; not resident in Linux's sense */
	uint64_t swap;	  /* swap entries */
	uint64_t tables;  /* table frames in reach, the root included; shared ones count in full */
	uint64_t shared_tables;
	uint64_t peak_rss;   /* most pages that were resident at once (VmHWM) */
	uint64_t peak_total; /* most pages that were mapped at once (VmPeak) */
};

/* What the frames are that a memory cgroup is charged for. */
enum vmemu_charge {
	VMEMU_CHARGE_ANON = 0,
	VMEMU_CHARGE_FILE = 1,
	VMEMU_CHARGE_SHMEM = 2,
	VMEMU_CHARGE_TABLES = 3,
	VMEMU_NCHARGES = 4
};

struct vmemu_cgroup_info {
	uint64_t usage; /* frames charged to it and those below */
	uint64_t peak;
	uint64_t kinds[4];   /* VMEMU_NCHARGES: to itself */
	uint64_t high;	     /* charges beyond its `high` or that of one below, */
	uint64_t high_local; /* beyond its own */
	uint64_t swap;	     /* slots of the swap device that it and those below have */
	uint64_t swap_peak;
	uint64_t swap_refused[2]; /* pages of theirs that stayed for a limit, and for that or a full device */
	uint64_t cached;	  /* frames in the swap cache, of its own */
};

/* Rows of a table of tasks, by column, one of which is to be chosen for what its space holds. */
struct vmemu_tasks {
	const uint8_t *state;  /* only rows that have `wanted` here */
	const uint32_t *space; /* id */
	const int16_t *adjust; /* pages, in steps of `step`, that it counts as more or less */
	const uint64_t
		*started; /* of equal ones the one that started last is chosen, then the one with the higher index, */
	const uint16_t *group; /* but before that the one in the group of the higher rank */
	const uint16_t *rank;  /* by group, 0: never; NULL: any group */
	uint64_t n;
	int64_t step;
	uint32_t ngroups;
	int16_t never; /* not rows that have this in `adjust` */
	uint8_t wanted;
};

/* What a space holds, for who is to choose one of many; pages. */
struct vmemu_space_size {
	uint64_t total; /* mapped */
	uint64_t anon;	/* resident by kind */
	uint64_t file;
	uint64_t shmem;
	uint64_t tables; /* the root not counted, shared ones in full */
	uint64_t swap;	 /* swap entries */
};

struct vmemu_machine_info {
	uint64_t nframes;
	uint64_t free;
	uint64_t tables;	/* frames that hold page tables */
	uint64_t anon;		/* frames of anonymous memory that are mapped */
	uint64_t anon_huge;	/* of them, in folios that a huge entry maps */
	uint64_t file;		/* frames of page cache */
	uint64_t shmem;		/* frames of shared memory and in-memory files */
	uint64_t zero;		/* frames of the zero page and the huge zero page */
	uint64_t pooled;	/* frames in pools of huge pages */
	uint64_t copied;	/* frames copied since boot, by copy-on-write and by eager fork */
	uint64_t shared_tables; /* references to tables beyond the first of each */
	uint64_t account;	/* pages charged by the mappings of all spaces and by shared memory */
	uint64_t nspaces;
	uint64_t nobjects;
	uint64_t generation; /* changes whenever anything mapped changes */
	uint64_t host_bytes; /* host memory for bookkeeping that was asked for, RAM itself aside */
};

/* What smaps sums over a range; bytes, pss in bytes << 12. */
struct vmemu_usage {
	uint64_t rss;
	uint64_t pss;
	uint64_t pss_dirty;
	uint64_t pss_anon;
	uint64_t pss_file;
	uint64_t pss_shmem;
	uint64_t shared_clean;
	uint64_t shared_dirty;
	uint64_t private_clean;
	uint64_t private_dirty;
	uint64_t referenced;
	uint64_t anonymous;
	uint64_t lazyfree;
	uint64_t ksm;
	uint64_t anon_huge;	 /* mapped by huge entries */
	uint64_t shared_hugetlb; /* pages of a pool; not in rss or pss */
	uint64_t private_hugetlb;
	uint64_t swap;	   /* pages in slots of the swap device */
	uint64_t swap_pss; /* the same, each divided by the holders of its slot; bytes << 12 */
};

/* A page that may be merged with equal ones, and a space that has had such pages. */
struct vmemu_ksm_page {
	uint64_t address;
	uint64_t hash; /* of its bytes */
	uint64_t pfn;
	uint64_t merged; /* 1: the frame is a KSM frame */
};

struct vmemu_ksm_space {
	uint64_t since; /* its number in the order in which spaces came to it */
	uint64_t space;
};

struct vmemu_translation {
	uint64_t pfn;
	uint32_t level; /* of the leaf entry: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB */
	uint32_t prot;	/* what the tables allow now: 1 read, 2 write, 4 execute */
	uint32_t accessed;
	uint32_t dirty;
	uint32_t exclusive; /* anonymous, known to be this space's alone */
	uint32_t table;	    /* frame of the leaf table */
};

enum vmemu_object_kind {
	VMEMU_OBJ_SHMEM = 1,	   /* a hole is filled with a zeroed frame; counts as shared memory */
	VMEMU_OBJ_FILE = 2,	   /* a missing page traps */
	VMEMU_OBJ_WRITENOTIFY = 4, /* the first write through a shared mapping faults (page_mkwrite) */
	VMEMU_OBJ_HUGETLB = 16,	   /* with SHMEM: its pages are of a pool of huge pages, */
	VMEMU_OBJ_GIANT = 32,	   /* that of 1 GiB, */
	VMEMU_OBJ_RESERVE = 64,	   /* and reserved for its whole size */
	VMEMU_OBJ_ACCOUNT = 8	   /* its whole size is charged to Committed_AS (shared anonymous memory) */
};

struct vmemu_object_info {
	uint64_t size;	  /* bytes */
	uint64_t nframes; /* resident in the page cache */
	uint32_t kind;
	uint32_t nvmas; /* mappings, a shared VMA block counted once */
};

/* A pool of huge pages, in such pages. */
struct vmemu_pool {
	uint64_t total;
	uint64_t free;
	uint64_t reserved; /* of the free ones */
};

/* A fault as it was recorded. Frames are UINT32_MAX where the entry mapped none. */
struct vmemu_fault {
	uint64_t sequence; /* 0 for the first of this log */
	uint64_t address;  /* first byte that was accessed */
	uint32_t pid;	   /* the owner's number, as the caller gave it */
	uint16_t kind;	   /* enum vmemu_kind */
	uint16_t access;   /* enum vmemu_access */
	uint32_t old_frame;
	uint32_t new_frame;
};

struct vmemu_log_info {
	uint64_t n;    /* records in the ring */
	uint64_t next; /* sequence number of the next one */
};

/* Which frames go first; the values are in the order of vmemu.memory.reclaim.POLICIES. */
enum vmemu_policy {
	VMEMU_POLICY_CLOCK = 0, /* in the order of frames, accessed ones at the second visit */
	VMEMU_POLICY_FIFO = 1,	/* as they came */
	VMEMU_POLICY_RANDOM = 2,
	VMEMU_POLICY_LRU = 3,	/* whose last access is longest ago; each access is recorded */
	VMEMU_POLICY_AGING = 4, /* the older of two generations; accessed ones join the younger */
	VMEMU_NPOLICIES = 5
};

/* What reclaim counts since boot, in pages. */
enum vmemu_reclaim_count {
	VMEMU_RC_SWPIN = 0, /* read from the swap device */
	VMEMU_RC_SWPOUT = 1,
	VMEMU_RC_SCAN_ANON = 2, /* looked at by a policy, shared memory included */
	VMEMU_RC_SCAN_FILE = 3,
	VMEMU_RC_STEAL_ANON = 4, /* freed */
	VMEMU_RC_STEAL_FILE = 5,
	VMEMU_NRECLAIM = 6
};

struct vmemu_reclaim {
	uint64_t npages; /* frames wanted */
	uint32_t
		swappiness; /* 0 to 200: how much of it from anonymous rather than mapped file memory, in halves of a percent */
	uint32_t ncgroups;	/* those with cgroups[id] != 0 only; */
	const uint8_t *cgroups; /* NULL: all */
	uint32_t sealed;	/* nothing is to be written to the swap device */
};

/* A frame on its way out that the caller has to write first. */
struct vmemu_victim {
	uint64_t index;	 /* of a file: the page, */
	uint32_t object; /* in this object; else 0 */
	uint32_t slot;	 /* of the swap device, or 0 */
	uint32_t pfn;
	uint32_t written; /* the caller's answer */
};

struct vmemu_swap {
	uint64_t total; /* slots */
	uint64_t free;
	uint64_t cached;    /* frames in the swap cache */
	uint64_t counts[6]; /* VMEMU_NRECLAIM */
};

typedef struct vmemu_machine vmemu_machine;

/* ---- machine ---- */

/* A machine of `nframes` frames. Returns NULL if the host has no memory. `around` is fault_around in pages. */
vmemu_machine *vmemu_machine_new(uint64_t nframes, uint32_t options, uint32_t around);
void vmemu_machine_free(vmemu_machine *m);
int vmemu_machine_info(vmemu_machine *m, struct vmemu_machine_info *out);
/* Faults of all processes since boot, by kind, into out[VMEMU_NKINDS]. */
int vmemu_machine_faults(vmemu_machine *m, uint64_t *out);
/* Counts by enum vmemu_event since boot, into out[VMEMU_NEVENTS]. */
int vmemu_machine_events(vmemu_machine *m, uint64_t *out);
/* Takes a frame for the zero page (with VMEMU_OPT_ZERO_PAGE; else -EINVAL). */
int vmemu_machine_zero_page(vmemu_machine *m, uint64_t *pfn);
/* Sets one more huge page aside, of 1 GiB if giant != 0, else of 2 MiB. -ENOMEM. */
int vmemu_pool_grow(vmemu_machine *m, int giant);
int vmemu_pool_info(vmemu_machine *m, int giant, struct vmemu_pool *out);
/* The nth allocation from now (1 is the next), of a frame or of host memory, fails once; 0 switches that off. */
int vmemu_machine_fail(vmemu_machine *m, uint64_t nth);
/* Whether pagemap shows what is soft-dirty; it is known in any case. */
int vmemu_machine_show_soft_dirty(vmemu_machine *m, int on);
/* Makes the marks of MADV_FREE seen that wait in a batch (lru_add_drain()). */
int vmemu_machine_drain(vmemu_machine *m);
/* Proves the machine consistent: 0, or -EUCLEAN with what is wrong in msg. */
int vmemu_machine_check(vmemu_machine *m, char *msg, size_t size);
/* Number of page-table paths to each of the frames [first, first + n). */
int vmemu_machine_mapcounts(vmemu_machine *m, uint64_t first, uint64_t n, uint64_t *out);
/* Flags of frames in the layout of /proc/kpageflags. */
int vmemu_machine_frame_flags(vmemu_machine *m, uint64_t first, uint64_t n, uint64_t *out);
/* Frames that have all of the flags `with` and none of `without`, in kpageflags' layout. */
int vmemu_machine_count_frames(vmemu_machine *m, uint64_t with, uint64_t without, uint64_t *n);
/* Free frames in aligned blocks of 512 that are free as a whole. */
int vmemu_machine_whole(vmemu_machine *m, uint64_t *n);
/* Frames mapped at all, and more than once (exact, whole machine). */
int vmemu_machine_sharing(vmemu_machine *m, uint64_t *mapped, uint64_t *shared);
/* The emulated RAM itself: nframes * 4096 bytes at the returned address. */
void *vmemu_machine_ram(vmemu_machine *m);

/* ---- spaces ---- */

int vmemu_space_new(vmemu_machine *m, uint32_t *space);
/* The ids of the spaces that live, ascending, at most `cap`; returns how many there are. */
int64_t vmemu_machine_spaces(vmemu_machine *m, uint32_t *out, uint64_t cap);
int vmemu_space_free(vmemu_machine *m, uint32_t space);
/* Ends a space that came to nothing: its faults are not counted for the machine either. */
int vmemu_space_abandon(vmemu_machine *m, uint32_t space);
/* A new space after a pattern, or nothing. A write that stops leaves the space as far as it is: VMEMU_TRAP_* and why in
 * out->trap; the rest of that write, those behind it and the changes are the caller's then. -ESTALE: an object is gone. */
int vmemu_space_build(vmemu_machine *m, const struct vmemu_pattern *pattern, uint32_t cgroup, struct vmemu_built *out);
/* `space` takes the place of `old`, which ends: its faults are added, its no_thp goes over. */
int vmemu_space_succeed(vmemu_machine *m, uint32_t space, uint32_t old);
/* `n` children, their ids into out; all or none. */
int vmemu_space_fork(vmemu_machine *m, uint32_t space, int mode, uint32_t n, uint32_t *out);
/* One child -> its id, in a form that is cheap to call. -EDQUOT: more than `most` pages are charged for the space. With
 * VMEMU_UNFINISHED added the child is not complete: vmemu_space_fork_on goes on, in the same mode, and returns 1 until it is. The
 * caller sees to it that the parent's mappings do not change meanwhile (-EAGAIN). A child that failed is gone. */
#define VMEMU_UNFINISHED 0x100000000
int64_t vmemu_space_fork_one(vmemu_machine *m, uint32_t space, int mode, uint64_t most);
int vmemu_space_fork_on(vmemu_machine *m, uint32_t space, uint32_t child, int mode);
/* Frees a space. Returns how many memory objects are left, times 2; plus 1 if the space had faults, which are then in
 * faults[VMEMU_NKINDS]. */
int64_t vmemu_space_end(vmemu_machine *m, uint32_t space, uint64_t *faults);
/* Frees n spaces in order, all or, if one is unknown, none (-EBADF); the faults that each had are in minor[i] and major[i]. */
int vmemu_space_end_many(vmemu_machine *m, const uint32_t *spaces, uint32_t n, uint64_t *minor, uint64_t *major);
int vmemu_space_info(vmemu_machine *m, uint32_t space, struct vmemu_space_info *out);
/* Index of the task whose space is worth most: resident pages, those in swap, page tables and what it counts as besides
 * (oom_badness()). -ESRCH:
 * none. What spaces are worth is remembered from one time to the next. */
int64_t vmemu_machine_worst(vmemu_machine *m, const struct vmemu_tasks *tasks);
/* The sizes of n spaces into out[n]; zeros for those that are not there. */
int vmemu_machine_space_sizes(vmemu_machine *m, const uint32_t *spaces, uint64_t n, struct vmemu_space_size *out);
int vmemu_space_sums(vmemu_machine *m, uint32_t space, struct vmemu_sums *out);
int vmemu_space_survey(vmemu_machine *m, uint32_t space, struct vmemu_survey *out);
int vmemu_space_faults(vmemu_machine *m, uint32_t space, uint64_t *out);
int vmemu_space_set_faults(vmemu_machine *m, uint32_t space, const uint64_t *in);
/* The caller's words of a space: kept, and the first of them copied by fork; VMEMU_NWORDS of them. */
int vmemu_space_words(vmemu_machine *m, uint32_t space, uint64_t *out);
int vmemu_space_set_words(vmemu_machine *m, uint32_t space, const uint64_t *in);

/* First mapping that ends above `address`; -ENOENT if there is none. */
int vmemu_space_find(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_vma *out);
/* Last mapping that ends at or below `address`; -ENOENT if there is none. */
int vmemu_space_find_before(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_vma *out);
/* Mappings from `address` up, at most `cap`; returns how many. */
int vmemu_space_vmas(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_vma *out, uint32_t cap);
/* A hole of `length` in [low, high), its start a multiple of `align`: the highest (top != 0) or lowest. -ENOMEM: none. */
int vmemu_space_hole(vmemu_machine *m, uint32_t space, uint64_t low, uint64_t high, uint64_t length, uint64_t align,
		     int top, uint64_t *out);
/* Maps [vma->start, vma->end), replacing what is there. vma->anon is ignored. Without an object it is private (-EINVAL).
 * apart: it does not become one with its neighbours. */
int vmemu_space_map(vmemu_machine *m, uint32_t space, const struct vmemu_vma *vma, int apart);
int vmemu_space_unmap(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
/* The usual case of either in one call; -EAGAIN where it is not, and nothing has happened then.
 * map_plain: private anonymous memory of `length` bytes in the highest hole below word `base` -> where, if a hole is there, no
 * word is set that fork does not copy, and the space has at most `nvmas` mappings before, `total` pages and `data` afterwards.
 * unmap_plain: nothing in [start, end) is sealed, and no mapping goes on at both ends. */
int64_t vmemu_space_map_plain(vmemu_machine *m, uint32_t space, uint64_t length, uint64_t flags, uint32_t base,
			      uint64_t nvmas, uint64_t total, uint64_t data);
int vmemu_space_unmap_plain(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
/* Gives [start, end), which lies in one mapping, these flags; page-table permissions follow. Not SHARED and MAYSHARE: -EINVAL. */
int vmemu_space_reflag(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, uint64_t flags);
/* Gives the mapping that holds `at` an identity, as its first anonymous frame would. -ENOENT: there is none. */
int vmemu_space_prepare_anon(vmemu_machine *m, uint32_t space, uint64_t at);
/* Makes two mappings of the one that holds `at` inside; 0 also if there is none. */
int vmemu_space_split(vmemu_machine *m, uint32_t space, uint64_t at);
/* Drops the pages of [start, end) and leaves the mappings. */
int vmemu_space_zap(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
/* Puts guards on all pages of [start, end), which lies in one mapping, and drops what was there; takes guards off.
 * Neither drops or splits the mapping, but one that had guards is marked as such for good. */
int vmemu_space_guard(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
int vmemu_space_unguard(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
/* Makes a huge page of the aligned 2 MiB at `address`, in one mapping. 0 also if it is one; -EINVAL: nothing there to begin with,
 * or it is not anonymous memory (MADV_COLLAPSE). */
int vmemu_space_collapse(vmemu_machine *m, uint32_t space, uint64_t address);
/* Transparent huge pages for this space: off != 0 switches them off (PR_SET_THP_DISABLE), off < 0 asks. Returns what holds. */
int vmemu_space_no_thp(vmemu_machine *m, uint32_t space, int off);
/* MADV_FREE, MADV_COLD and MADV_PAGEOUT for [start, end), which lies in one mapping; -EINVAL if it is the wrong kind. */
int vmemu_space_lazyfree(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
int vmemu_space_cold(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
int vmemu_space_pageout(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
/* /proc/PID/clear_refs: 1 to 3 take the accessed bit of all pages, of those in anonymous mappings, of those in mappings of
 * an object; 4 makes all mappings and pages soft-clean and write-protected. */
int vmemu_space_clear_refs(vmemu_machine *m, uint32_t space, int what);
/* Moves the pages of [start, end), in one mapping, to the hole at `to`, which gets a mapping of `length` bytes.
 * keep != 0: the old mapping stays, empty. */
int vmemu_space_move(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, uint64_t to, uint64_t length,
		     int keep);
/* Extends the mapping that ends (down == 0) or starts (down != 0) at `edge` to `to`, into a hole. */
int vmemu_space_extend(vmemu_machine *m, uint32_t space, uint64_t edge, uint64_t to, int down);

/* ---- memory cgroups ---- */

/* A group with a number of the caller's, from 1 to 65534, below `parent`, 0 for the root, which has no limits. -EEXIST, -ENOENT. */
int vmemu_cgroup_new(vmemu_machine *m, uint32_t id, uint32_t parent);
/* What is charged to it is its parent's then, and so are spaces. -EBUSY: there are groups below. */
int vmemu_cgroup_free(vmemu_machine *m, uint32_t id);
/* In frames, and slots of the swap device; UINT64_MAX for none. Nothing is done about what is there already. */
int vmemu_cgroup_limit(vmemu_machine *m, uint32_t id, uint64_t max, uint64_t high, uint64_t swap);
/* It was tried to bring a group down to its `high`: TRAP_RECLAIM does not ask for that any more, or if it is beyond it still, only
 * after `more` frames. */
int vmemu_cgroup_settled(vmemu_machine *m, uint32_t id, uint64_t more);
int vmemu_cgroup_info(vmemu_machine *m, uint32_t id, struct vmemu_cgroup_info *out);
/* Who pays for frames that the space gets from now on; children of fork inherit it. */
int vmemu_space_cgroup(vmemu_machine *m, uint32_t space, uint32_t id);

/* ---- accesses ---- */

/* Each returns 0 when all is done, or a VMEMU_TRAP_* with `trap` filled in; -EINVAL for an unknown `access`. */
int vmemu_space_read(vmemu_machine *m, uint32_t space, uint64_t address, void *buffer, uint64_t length, int access,
		     struct vmemu_trap *trap);
int vmemu_space_write(vmemu_machine *m, uint32_t space, uint64_t address, const void *buffer, uint64_t length,
		      struct vmemu_trap *trap);
/* Read and write in a form that is cheap to call. Returns 0 when all is done, else the bytes that are, times 256, plus the
 * enum vmemu_kind of a TRAP_FAULT, or VMEMU_STOPPED: make the rest with the calls above, which stop there again. */
int64_t vmemu_space_read_short(vmemu_machine *m, uint32_t space, uint64_t address, void *buffer, uint32_t length);
/* Adds to counts, VMEMU_NKINDS of uint64_t; stops after so many pages. */
int64_t vmemu_space_touch_short(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t length, int access,
				void *counts);
int64_t vmemu_space_write_short(vmemu_machine *m, uint32_t space, uint64_t address, const void *buffer,
				uint32_t length);
/* One access a page over [address, address + length); counts by kind are added to counts[VMEMU_NKINDS]. */
int vmemu_space_touch(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t length, int access, uint64_t *counts,
		      struct vmemu_trap *trap);
/* n accesses; writes == NULL: all are of kind `access`, else writes[i] != 0 is a write. Fatal ones go on. */
int vmemu_space_access(vmemu_machine *m, uint32_t space, const uint64_t *addresses, const uint8_t *writes, int access,
		       uint64_t n, uint8_t *kinds, struct vmemu_trap *trap);

/* ---- traces ---- */

/* The first thing wrong with n records, an enum vmemu_bad_record, its index into *bad; 0: nothing. alive[nlabels] says by label
 * who is alive before, and afterwards who is then. Needs no machine. */
int vmemu_trace_check(const struct vmemu_record *records, uint64_t n, uint8_t *alive, uint32_t nlabels, uint64_t *bad);
/* Makes the accesses of records[run->at] to records[n - 1], each to every page of its range; spaces[nlabels] says by label which
 * space it is, 0 for none. The greatest kind of each record goes to kinds[n], which must be zeros and may be NULL; each page
 * is counted in counts[VMEMU_NKINDS]. Fatal ones end their record and go on. Returns 0, or VMEMU_TRAP_PAGE, _STACK, _PAUSE or
 * _CALL with `run` saying where: act and call again. -ESRCH: records[run->at] has a label of no space. */
int vmemu_machine_run(vmemu_machine *m, const struct vmemu_record *records, uint64_t n, const uint32_t *spaces,
		      uint32_t nlabels, uint8_t *kinds, uint64_t *counts, struct vmemu_run *run,
		      struct vmemu_trap *trap);

/* ---- looking ---- */

/* npages entries in the layout of /proc/PID/pagemap. */
int vmemu_space_pagemap(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t npages, uint64_t *out);
/* -ENOENT: no entry. */
int vmemu_space_translate(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_translation *out);
int vmemu_space_usage(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, struct vmemu_usage *out);
/* The most that was resident is what is resident now (clear_refs 5). */
int vmemu_space_reset_peak(vmemu_machine *m, uint32_t space);
/* Bytes as the kernel reads them for /proc/PID/cmdline (access_remote_vm() with FOLL_ANON): private anonymous memory only,
 * zeros for pages never written, nothing changed. Returns how many could be read before the first that cannot. */
int64_t vmemu_space_peek(vmemu_machine *m, uint32_t space, uint64_t address, void *buffer, uint64_t length);
/* mincore(2): out[i] = 1 if page i is in memory; the range must be mapped (-ENOMEM). */
int vmemu_space_mincore(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, uint8_t *out);

/* ---- same-page merging ---- */

/* The spaces with mergeable mappings now or before, into out[cap]; returns how many there are. */
int vmemu_machine_ksm_spaces(vmemu_machine *m, struct vmemu_ksm_space *out, uint32_t cap);
/* Anonymous pages present in [start, end), at most `cap`; returns how many. -EOPNOTSUPP: frames hold no bytes. */
int vmemu_space_ksm_pages(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, struct vmemu_ksm_page *out,
			  uint32_t cap);
/* The frame of the anonymous page at `address` becomes a KSM frame. -EBUSY: it is held; -ENOENT: no such page. */
int vmemu_space_ksm_make(vmemu_machine *m, uint32_t space, uint64_t address);
/* The page at `address` is mapped to KSM frame `pfn`, or to the zero page, instead. -ESTALE: pfn is neither; -EAGAIN: its
 * bytes differ; else as vmemu_space_ksm_make. */
int vmemu_space_ksm_merge(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t pfn);
/* Gives every merged page of [start, end) a frame of its own. -ENOMEM: some are left. */
int vmemu_space_ksm_break(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end);
/* Pages merged with the zero page. */
int64_t vmemu_space_ksm_zero_pages(vmemu_machine *m, uint32_t space);

/* ---- swap and reclaim ---- */

/* A swap device of n pages, numbered from 1 on; once. -EBUSY: there is one. */
int vmemu_swap_on(vmemu_machine *m, uint32_t n);
int vmemu_swap_info(vmemu_machine *m, struct vmemu_swap *out);
/* The device's bytes, so that pages come back without a trap: memory that is lent until the next call, from slot 1 on, or if that is
 * NULL, a file of the host, -1: none. What can't be read from it stops with TRAP_SWAP all the same.
 * -EINVAL: there is no device. */
int vmemu_swap_lend(vmemu_machine *m, void *memory, int fd);
/* Writes those of n victims that have a slot to a device that is lent, and sets `written`. -errno: some of them may be written. */
int vmemu_swap_write(vmemu_machine *m, struct vmemu_victim *victims, uint32_t n);
/* The bytes of a slot, for an access that stopped with TRAP_SWAP; 0 also if they are not needed any more. */
int vmemu_swap_fill(vmemu_machine *m, uint32_t slot, const void *data);
/* The slot where a page of shared memory is, 0 if it is in none or in memory still; and its bytes, major != 0: for a fault. */
int64_t vmemu_object_slot(vmemu_machine *m, uint32_t object, uint64_t index);
int vmemu_object_swap_fill(vmemu_machine *m, uint32_t object, uint64_t index, const void *data, int major);
/* Begins anew with a policy: enum vmemu_policy. */
int vmemu_machine_policy(vmemu_machine *m, uint32_t policy, uint64_t seed);
/* Free frames. */
int64_t vmemu_machine_free_frames(vmemu_machine *m);
/* Accesses that fault stop with TRAP_RECLAIM while fewer frames than `low` are free; 0: never. */
int vmemu_machine_watermark(vmemu_machine *m, uint64_t low);
/* Nothing can be reclaimed now: accesses go on until some frames were freed, or half of those that are free are used. */
int vmemu_machine_stalled(vmemu_machine *m);
/* Frees frames, or gets them ready to be: out[cap] are to be written and then told to vmemu_machine_reclaimed. Returns how many
 * these are. Few may come of it where huge pages were cut: ask again as long as something does. *done: frames freed. */
int vmemu_machine_reclaim(vmemu_machine *m, const struct vmemu_reclaim *what, struct vmemu_victim *out, uint32_t cap,
			  uint64_t *done);
/* Returns how many of n victims are free now. */
int vmemu_machine_reclaimed(vmemu_machine *m, const struct vmemu_victim *victims, uint32_t n);
/* MADV_PAGEOUT for [start, end) in one mapping, where there is swap: out[cap] as vmemu_machine_reclaim. */
int vmemu_space_swap_out(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, struct vmemu_victim *out,
			 uint32_t cap);

/* ---- fault log ---- */

/* From now on faults are recorded in ring[capacity], the newest in place of the oldest when it is full; owners[nowners] says by
 * space whose it is. Both are lent until ring == NULL switches the log off. -EINVAL: no capacity; -EBUSY: it is on. */
int vmemu_machine_log(vmemu_machine *m, struct vmemu_fault *ring, uint64_t capacity, const uint32_t *owners,
		      uint64_t nowners);
/* How much was recorded; the records are in ring[0] to ring[n - 1] now, in their order. clear: after that the ring is empty. */
int vmemu_machine_log_sort(vmemu_machine *m, int clear, struct vmemu_log_info *out);
/* Records what an access came to that stopped with a trap and was refused by the caller; VMEMU_OOM is counted too. */
int vmemu_space_log(vmemu_machine *m, uint32_t space, uint64_t address, int access, int kind);

/* ---- objects ---- */

int vmemu_object_new(vmemu_machine *m, uint32_t kind, uint64_t size, uint32_t *object);
/* The ids of the objects that live, ascending, and by how many holds each is held, at most `cap`; returns how many there are. */
int64_t vmemu_machine_objects(vmemu_machine *m, uint32_t *out, uint32_t *held, uint64_t cap);
/* One more hold of the caller's; a new object has one. */
int vmemu_object_hold(vmemu_machine *m, uint32_t object);
/* Lets go of one hold; the object dies with the last one and its last mapping. */
int vmemu_object_release(vmemu_machine *m, uint32_t object);
int vmemu_object_info(vmemu_machine *m, uint32_t object, struct vmemu_object_info *out);
/* Puts npages pages into the page cache from index on; `length` bytes of data, the rest zeros. Pages already there stay.
 * The page `major` is marked: the fault that maps it first counts as major (UINT64_MAX: none). A cgroup pays (0: the root). */
int vmemu_object_fill(vmemu_machine *m, uint32_t object, uint64_t index, uint64_t npages, const void *data,
		      uint64_t length, uint64_t major, uint32_t cgroup);
/* pread and pwrite on the page cache. Stops before the first page of a file that is not in memory; returns the bytes done. */
int64_t vmemu_object_read(vmemu_machine *m, uint32_t object, uint64_t offset, void *buffer, uint64_t length);
int64_t vmemu_object_write(vmemu_machine *m, uint32_t object, uint64_t offset, const void *buffer, uint64_t length);
/* Sets the size; pages beyond it leave every mapping, copies included, and the cache. */
int vmemu_object_resize(vmemu_machine *m, uint32_t object, uint64_t size);
/* Zeroes what the cache holds of the last page beyond the end; written != 0: that page counts as written. */
int vmemu_object_clear_tail(vmemu_machine *m, uint32_t object, int written);
/* Drops cached pages [first, first + npages) and unmaps them (MADV_REMOVE); private copies stay. */
int vmemu_object_punch(vmemu_machine *m, uint32_t object, uint64_t first, uint64_t npages);
