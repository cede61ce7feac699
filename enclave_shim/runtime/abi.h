/* What the runtime (inside the image) and the shim agent share.
 *
 * Two memories:
 *  - the arena: everything that belongs to the enclave and travels with it. Its first
 *    RT_STATE_BYTES hold the runtime's own travelling state (struct rt_state).
 *  - the control block (ctl): belongs to one process on one host and never travels.
 *
 * Mirrored by enclave_shim/abi.py. Bump OPTMIG_ABI_VERSION with every change. */
#ifndef OPTMIG_ABI_H
#define OPTMIG_ABI_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef int i32;
typedef long i64;

#define OPTMIG_ABI_VERSION 9u
#define OPTMIG_CTL_MAGIC 0x4c54434d4954504full /* "OPTMICTL" */
#define OPTMIG_RT_MAGIC 0x54524d4954504f01ull

#define PAGE_BYTES 4096ul
#define ARENA_BASE 0x100000000000ul
#define CTL_BASE 0x0ff000000000ul
#define LAUNCH_BYTES (1ul << 20) /* struct ctl and the launch block */
/* What the program has written into its files (written.c): one byte for each block, and behind them one for
 * each whole file. Where a file begins is told by its inode, times FACTOR, shifted by SHIFT. */
#define FILE_MARKS_OFFSET LAUNCH_BYTES
#define FILE_MARKS (1ul << 20)
#define FILE_WHOLE_MARKS 4096ul
#define FILE_MARKS_FACTOR 0x9e3779b97f4a7c15ul
#define FILE_MARKS_SHIFT 44
#define FILE_BLOCK_BYTES 4096ul
#define CTL_HEADER_BYTES (LAUNCH_BYTES + FILE_MARKS + FILE_WHOLE_MARKS)
#define MARKS_BASE (CTL_BASE + CTL_HEADER_BYTES) /* one byte per arena page: 1 = dirty */
/* The same marks for a program built with --tracker=compiler: the byte for the page of address a is at
 * MARKS_BIAS + (a >> 12); below 2 GiB, where the image's own data is, they are a piece of their own. */
#define MARKS_BIAS 0x7ff00000ul
#define LOW_MARKS_BYTES (512ul << 10) /* behind the arena's marks in the control block's memory */
#define RT_MAX_SLOTS 64
#define RT_OUTPUTS 4
#define RT_STATE_BYTES (8ul << 20) /* struct rt_state at ARENA_BASE */

#define QUIESCE_SIGNAL 63
#define RESERVED_FD_FIRST 1000 /* the runtime's own descriptors live at and above this */
#define RESERVED_FD_COUNT 24

/* ctl.mode */
enum { MODE_LAUNCH = 0, MODE_RESTORE = 1 };
/* ctl.state, written by the runtime */
enum {
  RT_BOOTING = 0,
  RT_WAITING = 1,
  RT_RUNNING = 2,
  RT_PARKED = 3,
  RT_PREPARED = 4,
  RT_EXITED = 5,
  RT_FAILED = 6
};
/* ctl.command, written by the agent while the runtime waits (mode restore) */
enum { CMD_NONE = 0, CMD_POPULATE = 1, CMD_PREPARE = 2, CMD_RUN = 3, CMD_QUIT = 4, CMD_PROTECT = 5 };

#define RT_PLACE_CALLERS 6
#define CTL_MAX_REFUSED 16
/* Where in the program a call was made: its instruction, and words found on the stack that follow a
 * call instruction, nearest first. A guess for people: what is no return address may be among them. */
struct rt_place {
  u64 nr, ip;
  u64 callers[RT_PLACE_CALLERS];
};

struct ctl {
  u64 magic;
  u32 abi_version;
  u32 mode;
  u64 arena_bytes; /* whole pages; arena memfd has this size */
  u64 marks_bytes; /* arena_bytes / PAGE_BYTES, rounded up to a page */
  i32 fd_arena, fd_ctl, fd_event, fd_socket, fd_own_dir, fd_output, fd_stdin, fd_spare;
  u64 launch_offset; /* from CTL_BASE: argc, then NUL-terminated argv, env strings */
  u32 launch_argc, launch_envc;
  u32 launch_bytes;
  u32 shared_count; /* then in the launch block: shared paths */
  /* ---- written by the runtime ---- */
  u32 state;
  u32 threads;      /* live threads */
  u32 parked;       /* threads on their way in, parked or on their way out; an event when none is */
  i32 exit_status;  /* wait(2)-style code: exit status, or 128 + signal by the agent */
  i32 error;        /* errno of a failure while booting or preparing */
  u32 command_done; /* equals command_seq when the last command was carried out */
  char error_text[240];
  u64 boot_ns, parked_ns, prepared_ns, running_ns; /* CLOCK_MONOTONIC of this host */
  u64 syscalls;                                    /* mediated calls since boot */
  u64 unsupported[8];                              /* bit per call number that was answered with ENOSYS */
  struct rt_place refused[CTL_MAX_REFUSED];        /* the first ones, each place once */
  u32 refused_count;
  u32 vma_limit_hit;
  i64 slots_offset;     /* of a thread's slots from its FS base (see toolchain/marking) */
  u32 slots, slots_pad; /* how many; 0: the program does not mark what it writes */
  /* ---- written by the agent ---- */
  u32 command_seq; /* futex: raised for each command */
  u32 command;
  u64 command_arg0, command_arg1;
  u32 quiesce_seq; /* to quiesce: while `parked` is 0 set to resume_seq + 1, then signal the process */
  u32 resume_seq;  /* futex; to resume: set equal to quiesce_seq, then FUTEX_WAKE all.
                    * A thread parks while the two differ; a stray signal does nothing. */
  u32 released;    /* 1: a parked thread that wakes must exit, never run */
  /* ---- written by the runtime ---- */
  u32 running;   /* threads that are neither parked nor gone */
  u32 passed_on; /* the quiesce whose signal was passed on to every thread */
  /* ---- written by the agent ---- */
  u32 files_watched; /* 1: what the program writes into its files is marked */
};

/* ---- travelling state ---- */

#define RT_MAX_THREADS 256
#define RT_MAX_FDS 1000
#define RT_MAX_OFDS 1000
#define RT_MAX_WRITINGS 64
#define RT_PATH_BYTES 1024
#define RT_MAX_VMAS 65536
#define RT_AFFINITY_WORDS 16        /* 1024 processors, as in libc */
#define RT_MAX_WATCHES 4096         /* registrations of all epoll instances together */
#define RT_CONTENT_BYTES (4u << 20) /* what stands unread in pipes and socket pairs, together */

enum { FD_FREE = 0, FD_OPEN = 1 };
/* ofd.kind */
enum {
  OFD_FREE = 0,
  OFD_OWN = 1,      /* file below the enclave's own directory; path is relative to it */
  OFD_SHARED = 2,   /* file below a declared shared path; absolute path */
  OFD_EXTERNAL = 3, /* any other file, read only; absolute path; digest must match */
  OFD_DEVICE = 4,   /* /dev/null, zero, full, random, urandom; absolute path */
  OFD_STDIN = 5,
  OFD_OUTPUT = 6,
  OFD_BLOCKER = 7, /* cannot be carried across; path tells what it is: "socket", "inotify", … */
  /* objects of the kernel within the enclave, made anew on the next host: struct rt_object */
  OFD_PIPE = 8,
  OFD_SOCKETPAIR = 9,
  OFD_EVENTFD = 10,
  OFD_EPOLL = 11, /* its registrations: rt_state.watches */
  OFD_TIMERFD = 12,
  OFD_SIGNALFD = 13,
  OFD_VIEW = 14 /* a snapshot of what stood below /proc or /sys, in a memory file */
};

/* ofd.blocker: why a carried kind blocks now */
enum {
  BLOCK_NONE = 0,
  BLOCK_UNLINKED = 1,
  BLOCK_LOCKED = 3,
  BLOCK_OUTSIDE = 4, /* written outside own and shared paths */
  BLOCK_CONTENT = 5  /* more stands unread in it than can be carried */
};

/* What an open file description is that has no path. Filled while the program is parked.
 * Of a directory that is being listed: value is the listing's address, content_bytes the bytes of its
 * mapping, due_ns where it ends; the offset is the place in it. */
struct rt_object {
  u32 peer;                      /* pipe, socket pair: 1 + the other end's ofd; 0: closed */
  u32 type;                      /* socket pair: SOCK_…; eventfd: 1 a semaphore; timerfd: its clock */
  u64 value;                     /* eventfd: its count; signalfd: its mask; pipe: capacity, bytes;
                                  * timerfd: when it was armed, 0: it is not, or went off once and was read */
  i64 due_ns;                    /* timerfd: first expiry that was not read, virtual time; 0: none */
  i64 interval_ns;               /* timerfd */
  u32 content, content_bytes;    /* what can be read from it: a part of rt_state.content */
  u32 messages;                  /* 1: the content is messages, each after its length (u32) */
  u32 shut;                      /* socket pair: 1 shut for reading, 2 for writing */
  i32 send_bytes, receive_bytes; /* socket pair: SO_SNDBUF, SO_RCVBUF as they are set */
  i64 receive_timeout[2], send_timeout[2]; /* socket pair: struct timeval */
};

/* One registration of an epoll instance. The kernel's own `data` is the index of this slot. */
struct rt_watch {
  u32 epoll;  /* 1 + the instance's ofd; 0: a free slot */
  u32 target; /* ofd */
  u32 fd;     /* the number it was registered with */
  u32 events;
  u64 data;   /* the program's */
  u32 absent; /* 1: disabled by EPOLLONESHOT before a move, so not in this process's instance */
  u32 pad;
};

struct rt_fd {
  u32 state;
  u32 cloexec;
  u32 ofd; /* index into ofds */
  u32 pad;
};

struct rt_ofd {
  u32 kind;
  u32 refs;
  u32 flags;   /* of open(2), without O_CREAT, O_EXCL, O_TRUNC */
  u32 blocker; /* BLOCK_… */
  u32 pins;    /* of this host: its reads go past the program's page tables (pinned.c) */
  u32 pad;
  u64 inode;  /* of this host, of a file that can be written; 0: none */
  i64 offset; /* kept up to date at quiesce */
  struct rt_object object;
  struct rt_place made; /* only for kinds without a path */
  char path[RT_PATH_BYTES];
};

struct rt_vma {
  u64 start, end; /* addresses, page-aligned, [start, end) */
  u32 prot;       /* PROT_* */
  u32 kind;       /* 0 anonymous, 1 stack, 2 heap (brk), 3 file copy, 4 the image's .data/.bss,
               5 file copy that was mapped shared: never writable */
};

struct rt_sigaction {
  u64 handler, flags, mask;
  u64 restorer;
};

/* A call that changes a file, while it is under way. */
struct rt_writing {
  u32 used, pad;
  u64 inode;       /* ~0: any file */
  u64 from, bytes; /* the part that it may change; up to the end where the sum overflows */
  u64 spare[4];    /* a cache line of its own */
};

enum rt_slot { RT_SLOT_FREE, RT_SLOT_USED, RT_SLOT_ENDS }; /* ends: no program code runs in it any more */

struct rt_thread {
  u32 used; /* enum rt_slot */
  i32 vtid; /* the id the program knows */
  i32 tid;  /* of this host */
  u32 parked;
  u64 frame; /* ucontext address of the parked frame */
  u64 fs_base, gs_base;
  u64 stack_low, stack_bytes; /* the runtime's alternate stack */
  u64 clear_child_tid, robust_list, robust_len;
  u64 pending; /* signals pending for the thread when parked */
  /* handlers of the program that ran while the thread was in a call, and those of them without SA_RESTART */
  u64 handled, interrupted;
  i64 cpu_offset_ns;
  u32 affinity_bytes; /* 0: the program has set none */
  u32 late;           /* was sent a signal while the threads parked */
  u64 affinity[RT_AFFINITY_WORDS];
  char name[16];
  u64 stack_top;                                 /* of the program's own stack */
  u64 out_at[RT_OUTPUTS], out_bytes[RT_OUTPUTS]; /* what the call that it is in may fill */
  struct rt_writing writing;                     /* by a trapped call */
};

struct rt_state {
  u64 magic;
  u32 abi_version, moves; /* how often this enclave was restored */
  u64 arena_bytes;
  u64 low, high; /* bounds of what mmap and brk may hand out */
  u64 brk_start, brk_now;
  u32 lock;                            /* a futex: the tables below; never held by a parked thread */
  u32 stopped;                         /* 1 while what belongs to the process as a whole is stopped */
  u64 data_start, data_end, data_copy; /* addresses of .data/.bss and of their pages in the arena */
  i64 mono_offset_ns;                  /* virtual CLOCK_MONOTONIC = real + offset */
  u64 parked_mono_ns, parked_real_ns;  /* virtual monotonic, and wall clock, at quiesce */
  i64 cpu_offset_ns;
  u64 itimer[3][4]; /* remaining of ITIMER_REAL, VIRTUAL, PROF */
  u64 proc_pending;
  i32 vpid, next_vtid;
  u32 umask, thread_count;
  u32 vma_count, fd_high;
  u64 rlimit_stack, rlimit_spare;
  char cwd[RT_PATH_BYTES];     /* virtual */
  char own_dir[RT_PATH_BYTES]; /* the virtual path of the enclave's own directory */
  char exec_name[RT_PATH_BYTES];
  u64 shared_off[32]; /* offsets into shared_text */
  u32 shared_count;
  u32 outside_writes;     /* files created, changed or removed outside own and shared paths */
  char outside_path[256]; /* the first of them */
  char shared_text[8192];
  u32 tracker, tracker_pad;     /* which tracker was asked for at launch: 0 any, 1 kernel, 2 compiler */
  u64 boot_slots[RT_MAX_SLOTS]; /* of the first thread, until libc has set up its own */
  struct rt_sigaction sigactions[65];
  struct rt_thread threads[RT_MAX_THREADS];
  struct rt_writing writings[RT_MAX_WRITINGS]; /* by calls that are not trapped */
  struct rt_fd fds[RT_MAX_FDS];
  struct rt_ofd ofds[RT_MAX_OFDS];
  struct rt_vma vmas[RT_MAX_VMAS];
  u64 first_stack;  /* argc, argv, the environment, the auxiliary vector */
  u32 hidden_count; /* names given to files that were removed while open */
  u32 ofd_high;     /* above the last of `ofds` that was ever in use: the rest was never touched */
  u32 watch_high, content_used;
  struct rt_watch watches[RT_MAX_WATCHES];
  u8 content[RT_CONTENT_BYTES];
};

_Static_assert(sizeof(struct rt_state) <= RT_STATE_BYTES, "rt_state fits its region");
_Static_assert(sizeof(struct ctl) <= 4096, "ctl fits a page");
#endif
