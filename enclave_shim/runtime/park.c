/* Quiesce, and coming back: on this host, or as a fresh process on another.
 *
 * The quiesce signal's handler runs on the thread's alternate stack in the arena, so the kernel has
 * already written every register, with the whole XSAVE state, into memory that travels. The handler
 * notes where that frame is and waits on a futex outside the arena. To go on here it returns; to go
 * on elsewhere, a fresh process of the same image maps the same memory and executes rt_sigreturn on
 * the same frame.
 *
 * The signal can strike inside a blocking call that the runtime makes for the program (rt_waiting):
 * then the frame is nested in the one of SIGSYS, on the same alternate stack, and the call returns
 * EINTR when it comes back, wherever that is. If it strikes just before the `syscall` instruction the
 * call is simply made afterwards. So no check can be lost between the two. */
#include "rt.h"

#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define CLOCK_THREAD_CPUTIME 3
#define MADV_POPULATE_READ 22

void rt_event(void) {
  u64 one = 1;
  raw3(__NR_write, CTL->fd_event, &one, 8);
}

static u64 now_ns(void) {
  struct timespec64 t;
  raw2(__NR_clock_gettime, 1, &t);
  return (u64)(t.sec * NS_PER_S + t.nsec);
}

static void quit_if_released(void) {
  if (CTL->released)
    raw1(__NR_exit_group, 0);
}

/* One signal reaches one thread: the first that parks for a quiesce passes it on. */
static void wake_the_others(struct rt_thread *self) {
  u32 wanted = CTL->quiesce_seq;
  if (__atomic_exchange_n(&CTL->passed_on, wanted, __ATOMIC_SEQ_CST) == wanted)
    return;
  i64 pid = raw0(__NR_getpid);
  for (u32 i = 0; i < RT_MAX_THREADS; i++) {
    struct rt_thread *t = &RT->threads[i];
    if (t != self && t->used && t->tid && !t->parked)
      raw3(__NR_tgkill, pid, t->tid, QUIESCE_SIGNAL);
  }
}

/* A cancelled quiesce may be followed by the next one at once. The agent does not ask again while a thread
 * counts as parked. So a thread counts first and looks second whether it is wanted, and what it does because
 * of the answer it has done before it counts no more: no thread goes on into another quiesce unnoticed, or
 * parks for one that is over. */

static void come_out(void) {
  if (__atomic_sub_fetch(&CTL->parked, 1, __ATOMIC_SEQ_CST) == 0)
    rt_event();
}

/* Returns 0 if no quiesce is wanted. While the thread counted, others did not pass the signal on to it. */
static int go_in(struct rt_thread *self) {
  do {
    self->parked = 1;
    __atomic_add_fetch(&CTL->parked, 1, __ATOMIC_SEQ_CST);
    if (rt_quiesce_is_wanted())
      return 1;
    self->parked = 0;
    come_out();
  } while (rt_quiesce_is_wanted());
  return 0;
}

static void stop_process(void) {
  rt_interval_timers_stop();
  rt_files_save();
  rt_signals_save();
  rt_clocks_save();
  RT->stopped = 1;
}

/* By the first thread that goes on: what it sets then must not be set back by a later one. */
static void start_process(void) {
  rt_lock();
  if (RT->stopped) {
    rt_cpu_clock_resumed();
    rt_interval_timers_start();
    RT->stopped = 0;
    CTL->running_ns = now_ns();
    CTL->state = RT_RUNNING;
  }
  rt_unlock();
}

/* The last thread that stops does what belongs to the process as a whole. A quiesce that is cancelled before
 * stops none of it; where that comes at the same time, the threads that go on wait for the lock. Nothing is
 * told under the lock, which is in memory that travels. */
void rt_thread_stops(void) {
  rt_lock();
  int last = __atomic_sub_fetch(&CTL->running, 1, __ATOMIC_SEQ_CST) == 0;
  if (last) /* one that exits counts as well until it has told */
    __atomic_add_fetch(&CTL->parked, 1, __ATOMIC_SEQ_CST);
  int stops = last && rt_quiesce_is_wanted();
  if (stops)
    stop_process();
  rt_unlock();
  if (stops) {
    CTL->parked_ns = now_ns();
    __atomic_store_n(&CTL->state, RT_PARKED, __ATOMIC_SEQ_CST);
    if (!rt_quiesce_is_wanted()) /* who started the process again may have told that before */
      CTL->state = RT_RUNNING;
    rt_event();
  }
  if (last)
    come_out();
}

void rt_quiesce_handler(int sig, struct rt_siginfo *info, struct rt_ucontext *uc) {
  (void)sig;
  (void)info;
  struct rt_thread *self = rt_self();
  if (!go_in(self))
    return; /* it was cancelled meanwhile */
  wake_the_others(self);
  rt_begin_again(uc);
  self->frame = (u64)uc;
  raw2(__NR_arch_prctl, ARCH_GET_FS, &self->fs_base);
  rt_signals_save_thread(self);
  self->cpu_offset_ns += rt_clock_ns(CLOCK_THREAD_CPUTIME);
  rt_thread_stops();
  u32 seen;
  while ((seen = CTL->resume_seq) != CTL->quiesce_seq)
    raw4(__NR_futex, &CTL->resume_seq, FUTEX_WAIT, seen, 0);
  quit_if_released();
  start_process();
  self->cpu_offset_ns -= rt_clock_ns(CLOCK_THREAD_CPUTIME);
  self->parked = 0;
  __atomic_add_fetch(&CTL->running, 1, __ATOMIC_SEQ_CST);
  come_out();
}

/* ---- a fresh process on the destination ---- */

/* The slot that the process's first thread takes over. */
static struct rt_thread *first_thread(void) {
  struct rt_thread *t = RT->threads;
  while (t->used != RT_SLOT_USED)
    t++;
  return t;
}

static void prepare(const struct rt_layout *image, struct rt_protections *protections) {
  char why[sizeof CTL->error_text];
  rt_check_state(image);
  int r = rt_protections_apply(protections);
  if (r)
    rt_fail(-r, "the mappings of the program could not be restored");
  rt_protections_forget(protections);
  r = rt_files_restore(why, sizeof why);
  if (r)
    rt_fail(-r, why);
  raw1(__NR_umask, RT->umask);
  CTL->state = RT_PREPARED; /* the agent waits for command_done as well */
  r = rt_threads_restore(first_thread());
  if (r)
    rt_fail(-r, "the program's threads could not be made again");
  CTL->prepared_ns = now_ns();
}

/* Nobody has passed a quiesce's signal on to a thread that was parked or not there yet. It is delivered by
 * the return. */
void rt_enter_program(struct rt_thread *t) {
  if (rt_quiesce_is_wanted())
    raw3(__NR_tgkill, raw0(__NR_getpid), t->tid, QUIESCE_SIGNAL);
  rt_leave_for_frame(t->frame);
}

void rt_return_to_program(struct rt_thread *t) {
  rt_arm_thread(t);
  raw2(__NR_arch_prctl, ARCH_SET_FS, t->fs_base);
  rt_signals_restore_thread(t);
  rt_thread_settings_restore(t);
  t->cpu_offset_ns -= rt_clock_ns(CLOCK_THREAD_CPUTIME);
  __atomic_store_n(&t->parked, 0, __ATOMIC_SEQ_CST);
  rt_enter_program(t);
}

static void run(void) __attribute__((noreturn));
static void run(void) {
  struct rt_thread *t = first_thread();
  t->tid = (i32)raw0(__NR_gettid);
  if (t->clear_child_tid)
    raw1(__NR_set_tid_address, t->clear_child_tid);
  RT->moves++;
  rt_clocks_restore();
  rt_timerfds_start();
  rt_signals_restore();
  rt_interval_timers_start();
  RT->stopped = 0;
  CTL->running_ns = now_ns();
  CTL->state = RT_RUNNING;
  CTL->command_done = CTL->command_seq;
  raw3(__NR_futex, &CTL->state, FUTEX_WAKE, RT_MAX_THREADS);
  rt_event();
  rt_return_to_program(t);
}

static void populate(u64 offset, u64 bytes) {
  if ((offset | bytes) & (PAGE_BYTES - 1) || offset > CTL->arena_bytes || bytes > CTL->arena_bytes - offset)
    rt_fail(E_INVAL, "populate: out of the arena");
  /* Reading is enough: an entry of a shared mapping can be written to from the start, and for a read
   * the kernel maps the neighbours of a page as well. */
  i64 r = raw3(__NR_madvise, ARENA_BASE + offset, bytes, MADV_POPULATE_READ);
  if (IS_ERR(r))
    rt_fail((int)-r, "the arena's memory could not be populated");
}

/* The table may have been sent in the middle of a change: then the next one is better. */
static void protect_ahead(struct rt_protections *protections) {
  int r = rt_protections_apply(protections);
  if (r && r != -E_INVAL)
    rt_fail(-r, "the program's memory could not be protected");
}

void rt_wait_for_commands(const struct rt_layout *image) {
  struct rt_protections *protections = rt_protections_of_fresh_memory(image);
  u64 all = ~0ul;
  raw4(__NR_rt_sigprocmask, 2, &all, 0, 8);
  CTL->state = RT_WAITING;
  rt_event();
  for (u32 done = CTL->command_done;;) {
    u32 seq = CTL->command_seq;
    if (seq == done) {
      raw4(__NR_futex, &CTL->command_seq, FUTEX_WAIT, seq, 0);
      continue;
    }
    quit_if_released();
    switch (CTL->command) {
    case CMD_POPULATE: populate(CTL->command_arg0, CTL->command_arg1); break;
    case CMD_PROTECT:
      if (CTL->state != RT_WAITING)
        rt_fail(E_INVAL, "protect was asked for after prepare");
      protect_ahead(protections);
      break;
    case CMD_PREPARE:
      if (CTL->state != RT_WAITING)
        rt_fail(E_INVAL, "prepare was asked for twice");
      prepare(image, protections);
      break;
    case CMD_RUN:
      if (CTL->state != RT_PREPARED)
        rt_fail(E_INVAL, "run was asked for before prepare");
      run();
    case CMD_QUIT: raw1(__NR_exit_group, 0);
    default: rt_fail(E_INVAL, "an unknown command");
    }
    done = seq;
    CTL->command_done = done;
    rt_event();
  }
}
