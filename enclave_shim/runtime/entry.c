/* The image's entry: runs before libc's _start, on the stack that the kernel made.
 *
 * It maps the control block and the arena, puts .data/.bss into the arena, hands the tracker's
 * descriptors to the shim agent, and then either starts the program on a stack in the arena
 * (launch) or waits for the agent's commands (restore). The process ends with its keeper: that is
 * arranged before exec (PR_SET_PDEATHSIG) and must not be undone here. */
#include "rt.h"

#define AT_NULL 0
#define AT_PHDR 3
#define AT_PHNUM 5
#define AT_ENTRY 9
#define AT_SECURE 23
#define AT_RANDOM 25
#define AT_EXECFN 31

#define PROT_RW 3
#define MAP_SHARED_FIXED 0x11
#define MADV_NOHUGEPAGE 15
#define PR_SET_DUMPABLE 4
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define ARCH_SET_FS 0x1002
#define PT_LOAD 1
#define PF_W 2
#define STACK_MIN_BYTES (8ul << 20)
#define STACK_GUARD_BYTES (64ul << 10)
#define HEAP_GAP_BYTES (1ul << 20)

struct elf_phdr {
  u32 type, flags;
  u64 offset, vaddr, paddr, filesz, memsz, align;
};

extern void _start(void);
extern char __start_optmig_text[], __stop_optmig_text[];

__asm__(".pushsection optmig_text,\"ax\",@progbits\n"
        ".globl optmig_entry\n"
        ".type optmig_entry,@function\n"
        "optmig_entry:\n"
        "  xor %ebp, %ebp\n"
        "  mov %rsp, %rdi\n"
        "  and $-16, %rsp\n"
        "  call optmig_boot\n"
        "  ud2\n"
        ".globl rt_restorer\n"
        ".type rt_restorer,@function\n"
        "rt_restorer:\n"
        "  mov $15, %eax\n"
        "  syscall\n"
        "  ud2\n"
        ".popsection\n"
        /* what tells an enclave image from any other program: a note with the runtime's ABI version */
        ".pushsection .note.optmig,\"a\",@note\n"
        ".balign 4\n"
        ".long 7, 4, 1\n"
        ".asciz \"optmig\"\n"
        ".balign 4\n"
        ".long 9\n"
        ".popsection\n");
_Static_assert(OPTMIG_ABI_VERSION == 9, "keep the note's last word equal to OPTMIG_ABI_VERSION");

static void die(const char *text) {
  raw3(__NR_write, 2, text, rt_strlen(text));
  raw1(__NR_exit_group, 127);
  __builtin_unreachable();
}

void rt_fail(int error, const char *text) {
  u64 n = rt_strlen(text);
  if (n >= sizeof(CTL->error_text))
    n = sizeof(CTL->error_text) - 1;
  rt_copy((void *)CTL->error_text, text, n);
  CTL->error_text[n] = 0;
  CTL->error = error;
  CTL->state = RT_FAILED;
  rt_event();
  raw1(__NR_exit_group, 127);
  __builtin_unreachable();
}

static int parse_fd(const char *s) {
  int n = 0;
  while (*s >= '0' && *s <= '9')
    n = n * 10 + (*s++ - '0');
  return n;
}

static const char *env_value(char **env, const char *name) {
  u64 n = rt_strlen(name);
  for (; *env; env++) {
    u64 i = 0;
    while (i < n && (*env)[i] == name[i])
      i++;
    if (i == n && (*env)[n] == '=')
      return *env + n + 1;
  }
  return 0;
}

static i32 move_fd(i32 fd, int *next) {
  if (fd < 0)
    return -1;
  i64 moved = raw3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, RESERVED_FD_FIRST + *next);
  if (IS_ERR(moved))
    rt_fail((int)-moved, "a reserved descriptor could not be moved (is the descriptor limit below 1024?)");
  *next = (int)moved - RESERVED_FD_FIRST + 1;
  return (i32)moved;
}

/* Everything above 2 that the program did not open itself must be out of its sight. */
static void move_reserved_fds(void) {
  int next = 0;
  volatile i32 *fds[] = {&CTL->fd_arena,   &CTL->fd_ctl,    &CTL->fd_event, &CTL->fd_socket,
                         &CTL->fd_own_dir, &CTL->fd_output, &CTL->fd_stdin};
  for (u64 i = 0; i < ARRAY_LEN(fds); i++)
    *fds[i] = move_fd(*fds[i], &next);
  raw3(__NR_close_range, 3, RESERVED_FD_FIRST - 1, 0);
}

/* ---- the tracker's descriptors: both can only be made by the process they observe ---- */

struct uffdio_api {
  u64 api, features, ioctls;
};
#define UFFD_USER_MODE_ONLY 1
#define UFFDIO_API_IOCTL 0xc018aa3ful
#define UFFD_FEATURES                                                                                        \
  ((1ul << 0) | (1ul << 12) | (1ul << 13) | (1ul << 15)) /* WP, WP on shmem, WP_UNPOPULATED, WP_ASYNC */
#define AT_FDCWD_ -100

static void send_tracker_fds(void) {
  i32 error = 0;
  i64 uffd = raw1(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  if (!IS_ERR(uffd)) {
    struct uffdio_api api = {0xaa, UFFD_FEATURES, 0};
    i64 r = raw3(__NR_ioctl, uffd, UFFDIO_API_IOCTL, &api);
    if (IS_ERR(r)) {
      error = (i32)-r;
      raw1(__NR_close, uffd);
    }
  } else {
    error = (i32)-uffd;
  }
  i64 pagemap = raw4(__NR_openat, AT_FDCWD_, "/proc/self/pagemap", O_CLOEXEC, 0);
  if (IS_ERR(pagemap))
    rt_fail((int)-pagemap, "/proc/self/pagemap could not be opened");
  struct {
    u64 base, len;
  } iov = {(u64)&error, sizeof error};
  struct {
    u64 len;
    i32 level, type;
    i32 fds[2];
  } control = {error ? 20 : 24, 1, 1 /* SOL_SOCKET, SCM_RIGHTS */, {0, 0}};
  control.fds[0] = (i32)(error ? pagemap : uffd);
  control.fds[1] = (i32)pagemap;
  struct {
    u64 name;
    u32 name_len, pad;
    u64 iov, iov_len, control, control_len;
    u32 flags, pad2;
  } msg = {0, 0, 0, (u64)&iov, 1, (u64)&control, 24, 0, 0};
  i64 sent = raw3(__NR_sendmsg, CTL->fd_socket, &msg, 0);
  if (IS_ERR(sent))
    rt_fail((int)-sent, "the tracker's descriptors could not be sent to the shim agent");
  raw1(__NR_close, pagemap);
  if (!error)
    raw1(__NR_close, uffd);
  raw1(__NR_close, CTL->fd_socket);
  CTL->fd_socket = -1;
}

/* ---- memory ---- */

struct boot {
  u64 *auxv;
  struct elf_phdr *phdrs;
  u64 phnum;
  u64 data_start, data_end, data_copy;
  u64 stack_low, stack_high;
};

static u64 auxv_get(u64 *auxv, u64 key) {
  for (; auxv[0] != AT_NULL; auxv += 2)
    if (auxv[0] == key)
      return auxv[1];
  return 0;
}

static void *map_fixed(u64 at, u64 bytes, int fd, u64 offset) {
  i64 r = raw6(__NR_mmap, (i64)at, (i64)bytes, PROT_RW, MAP_SHARED_FIXED, fd, (i64)offset);
  if (IS_ERR(r))
    die("optmig runtime: a fixed mapping failed\n");
  return (void *)r;
}

/* Maps pages of the arena, one entry a page also where they lie in a huge one: a protection of two
 * megabytes would be lifted by one write, and all of them count as written. A kernel without huge
 * pages refuses the advice and needs none. */
static void map_arena(u64 at, u64 bytes, u64 offset) {
  map_fixed(at, bytes, CTL->fd_arena, offset);
  raw3(__NR_madvise, (i64)at, (i64)bytes, MADV_NOHUGEPAGE);
}

static void map_ctl(int fd) {
  map_fixed(CTL_BASE, CTL_HEADER_BYTES, fd, 0);
  if (CTL->magic != OPTMIG_CTL_MAGIC || CTL->abi_version != OPTMIG_ABI_VERSION)
    die("optmig runtime: the control block is not of this runtime's version\n");
  map_fixed(MARKS_BASE, CTL->marks_bytes, fd, CTL_HEADER_BYTES);
}

static void lay_out(struct boot *b) {
  b->data_start = ~0ul;
  b->data_end = 0;
  u64 stack_bytes = STACK_MIN_BYTES;
  for (u64 i = 0; i < b->phnum; i++) {
    struct elf_phdr *p = &b->phdrs[i];
    if (p->type == PT_LOAD && (p->flags & PF_W)) {
      if (PAGE_DOWN(p->vaddr) < b->data_start)
        b->data_start = PAGE_DOWN(p->vaddr);
      if (PAGE_UP(p->vaddr + p->memsz) > b->data_end)
        b->data_end = PAGE_UP(p->vaddr + p->memsz);
    }
    if (p->type == 0x6474e551 /* PT_GNU_STACK */ && p->memsz > stack_bytes)
      stack_bytes = PAGE_UP(p->memsz);
  }
  if (b->data_end == 0) /* a program without a single variable */
    b->data_start = 0;
  b->data_copy = ALT_STACKS_END;
  b->stack_low = b->data_copy + (b->data_end - b->data_start) + STACK_GUARD_BYTES;
  b->stack_high = b->stack_low + stack_bytes;
  if (b->stack_high + HEAP_GAP_BYTES * 16 > ARENA_BASE + CTL->arena_bytes)
    rt_fail(E_NOMEM, "the arena is too small for this image's data and stack");
}

static void map_data(struct boot *b, int copy) {
  u64 bytes = b->data_end - b->data_start;
  if (!bytes)
    return;
  if (copy)
    rt_copy((void *)b->data_copy, (void *)b->data_start, bytes);
  map_arena(b->data_start, bytes, b->data_copy - ARENA_BASE);
}

/* ---- the program's first stack: argc, argv, env, auxv, as the ABI wants them ---- */

static char *push_text(u64 *sp, const char *s) {
  u64 n = rt_strlen(s) + 1;
  *sp -= n;
  rt_copy((void *)*sp, s, n);
  return (char *)*sp;
}

static const char *next_text(const char *s) {
  return s + rt_strlen(s) + 1;
}

static void set_text(char *to, const char *from) {
  u64 n = rt_strlen(from);
  if (n >= RT_PATH_BYTES)
    rt_fail(E_NAMETOOLONG, "a path of the launch block is too long");
  rt_copy(to, from, n + 1);
}

static const char *read_launch_paths(const char *s) {
  u64 used = 0;
  if (CTL->shared_count > ARRAY_LEN(RT->shared_off))
    rt_fail(E_INVAL, "too many shared paths (at most 32)");
  for (u32 i = 0; i < CTL->shared_count; i++, s = next_text(s)) {
    u64 n = rt_strlen(s) + 1;
    if (used + n > sizeof RT->shared_text)
      rt_fail(E_NAMETOOLONG, "the shared paths are too long");
    rt_copy(RT->shared_text + used, s, n);
    RT->shared_off[i] = used;
    used += n;
  }
  RT->shared_count = CTL->shared_count;
  set_text(RT->own_dir, s);
  set_text(RT->cwd, s);
  s = next_text(s);
  set_text(RT->exec_name, s);
  return s;
}

static u64 build_stack(struct boot *b) {
  const char *s = (const char *)CTL_BASE + CTL->launch_offset;
  u64 sp = b->stack_high - 64;
  u64 words = 1 + CTL->launch_argc + 1 + CTL->launch_envc + 1;
  u64 *first = 0;
  /* strings first, high up; then the vectors below them */
  u64 total = CTL->launch_bytes + (words + 64) * 8 + 4096;
  if (total > b->stack_high - b->stack_low)
    rt_fail(7 /* E2BIG */, "arguments and environment do not fit the stack");
  u64 vectors = (sp - CTL->launch_bytes - 4096 - (words + 64) * 8) & ~15ul;
  first = (u64 *)vectors;
  u64 *v = first;
  *v++ = CTL->launch_argc;
  for (u32 i = 0; i < CTL->launch_argc; i++, s = next_text(s))
    *v++ = (u64)push_text(&sp, s);
  *v++ = 0;
  for (u32 i = 0; i < CTL->launch_envc; i++, s = next_text(s))
    *v++ = (u64)push_text(&sp, s);
  *v++ = 0;
  read_launch_paths(s);
  /* Only plain numbers pass; pointers are made anew inside the arena, and AT_SYSINFO_EHDR is left
   * out, so that libc uses no vdso: its clock could not be mediated. */
  static const u8 plain[] = {3, 4, 5, 6, 8, 9, 11, 12, 13, 14, 16, 17, 26, 51};
  for (u64 *a = b->auxv; a[0] != AT_NULL; a += 2)
    for (u64 i = 0; i < ARRAY_LEN(plain); i++)
      if (a[0] == plain[i]) {
        *v++ = a[0];
        *v++ = a[0] == AT_ENTRY ? (u64)_start : a[1];
      }
  sp = (sp - 16) & ~15ul;
  if (raw3(__NR_getrandom, sp, 16, 0) != 16)
    rt_fail(E_AGAIN, "getrandom failed");
  *v++ = AT_RANDOM;
  *v++ = sp;
  *v++ = AT_SECURE;
  *v++ = 0;
  *v++ = AT_EXECFN;
  *v++ = (u64)RT->exec_name;
  *v++ = AT_NULL;
  *v++ = 0;
  return (u64)first;
}

/* ---- per thread: alternate stack, and the trap ---- */

void rt_arm_thread(struct rt_thread *t) {
  struct {
    u64 sp;
    i32 flags, pad;
    u64 size;
  } ss = {t->stack_low, 0, 0, t->stack_bytes};
  i64 r = raw2(__NR_sigaltstack, &ss, 0);
  if (IS_ERR(r))
    rt_fail((int)-r, "sigaltstack failed");
  u64 text = (u64)__start_optmig_text;
  r = raw5(__NR_prctl, PR_SET_SYSCALL_USER_DISPATCH, 1, text, (u64)__stop_optmig_text - text, 0);
  if (IS_ERR(r))
    rt_fail((int)-r,
            "this kernel cannot trap system calls (PR_SET_SYSCALL_USER_DISPATCH, Linux 5.11 or later)");
}

void rt_install_handlers(void) {
  const u64 sa_siginfo = 4, sa_onstack = 0x08000000;
  i64 r = rt_kernel_sigaction(SIG_SYS, (u64)rt_sigsys_handler, sa_siginfo | sa_onstack, ~0ul);
  if (!IS_ERR(r))
    r = rt_kernel_sigaction(QUIESCE_SIGNAL, (u64)rt_quiesce_handler, sa_siginfo | sa_onstack, ~0ul);
  if (IS_ERR(r))
    rt_fail((int)-r, "a signal handler of the runtime could not be installed");
}

static void init_state(struct boot *b) {
  struct rt_state *s = RT;
  s->magic = OPTMIG_RT_MAGIC;
  s->abi_version = OPTMIG_ABI_VERSION;
  s->arena_bytes = CTL->arena_bytes;
  s->data_start = b->data_start;
  s->data_end = b->data_end;
  s->data_copy = b->data_copy;
  s->vpid = 2; /* as in a process namespace of one's own; 1 is nobody's */
  s->next_vtid = 3;
  s->umask = (u32)raw1(__NR_umask, 022);
  raw1(__NR_umask, s->umask);
  s->rlimit_stack = b->stack_high - b->stack_low;
  s->thread_count = 1;
  struct rt_thread *t = &s->threads[0];
  t->used = RT_SLOT_USED;
  t->vtid = s->vpid;
  t->stack_low = ALT_STACKS_BASE;
  t->stack_bytes = ALT_STACK_BYTES;
  t->tid = (i32)raw0(__NR_gettid);
  t->stack_top = b->stack_high;
  rt_memory_init(b->stack_high + HEAP_GAP_BYTES, ARENA_BASE + s->arena_bytes);
  rt_memory_add(b->stack_low, b->stack_high, PROT_RW, 1);
  if (b->data_end)
    rt_memory_add(b->data_start, b->data_end, PROT_RW, 4);
  raw3(__NR_mprotect, b->stack_low - STACK_GUARD_BYTES, STACK_GUARD_BYTES, 0);
  rt_memory_add(b->stack_low - STACK_GUARD_BYTES, b->stack_low, 0, 1);
  rt_files_init();
}

/* Into libc's own entry. rdx = 0: no function for atexit; all else is as the kernel leaves it at exec. */
__attribute__((noreturn)) static void start(u64 stack) {
  __asm__ volatile("mov %0, %%rsp\n xor %%edx, %%edx\n xor %%ebp, %%ebp\n jmp _start"
                   :
                   : "r"(stack)
                   : "memory");
  __builtin_unreachable();
}

__attribute__((used)) void optmig_boot(u64 *sp) {
  char **env = (char **)(sp + 1 + sp[0] + 1);
  const char *ctl_fd = env_value(env, "OPTMIG_CTL");
  if (!ctl_fd) {
    if (rt_may_run_alone(env_value(env, "OPTMIG_ALONE"), sp[0] ? (const char *)sp[1] : 0)) {
      rt_marks_alone();
      start((u64)sp);
    }
    die("This is an optmig enclave image: it is started by optmigd (optmigctl launch IMAGE), not "
        "directly. With OPTMIG_ALONE=1 in the environment it runs as an ordinary process, unprotected.\n");
  }
  map_ctl(parse_fd(ctl_fd));
  CTL->state = RT_BOOTING;
  struct boot b = {0};
  u64 *p = (u64 *)env;
  while (*p)
    p++;
  b.auxv = p + 1;
  b.phdrs = (struct elf_phdr *)auxv_get(b.auxv, AT_PHDR);
  b.phnum = auxv_get(b.auxv, AT_PHNUM);
  move_reserved_fds();
  map_arena(ARENA_BASE, CTL->arena_bytes, 0);
  lay_out(&b);
  rt_marks_boot(b.data_end);
  send_tracker_fds();
  raw5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
  rt_install_handlers();
  CTL->threads = CTL->running = 1;
  CTL->parked = 0;
  if (CTL->mode == MODE_RESTORE) {
    map_data(&b, 0);
    struct rt_layout image = {b.data_start, b.data_end, b.data_copy, b.stack_high + HEAP_GAP_BYTES};
    rt_wait_for_commands(&image);
  }
  map_data(&b, 1);
  rt_direct = CTL->slots == 0;
  init_state(&b);
  u64 stack = build_stack(&b);
  RT->first_stack = stack;
  rt_arm_thread(&RT->threads[0]);
  rt_marks_first_thread();
  struct timespec64 now;
  raw2(__NR_clock_gettime, 1, &now);
  CTL->running_ns = (u64)(now.sec * NS_PER_S + now.nsec);
  CTL->state = RT_RUNNING;
  rt_event();
  start(stack);
}
