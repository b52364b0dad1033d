// Fibers of the host harness: one stack per CUDA thread, switched by hand.
//
// Layout: one mapping holds all stacks, a guard page below each, so a runaway recursion in a kernel faults instead of
// running into its neighbour. On x86-64 a switch saves the six callee-saved registers and swaps the stack pointer, some
// nanoseconds; swapcontext, used elsewhere, costs a system call for the signal mask. AddressSanitizer is told of every
// switch; without that it takes the first fiber stack for a stack overflow.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define ANABRANCH_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ANABRANCH_SIMT_ASAN 1
#endif
#endif

#if defined(ANABRANCH_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace anabranch::simt {

/// Stacks for up to `count` fibers, kept between launches.
class StackPool {
 public:
  explicit StackPool(int count) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), count_(count) {
    memory_ = mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    for (int i = 0; i < count_; ++i) mprotect(bottom(i) - page_, page_, PROT_NONE);
  }
  ~StackPool() { munmap(memory_, size()); }
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  char* bottom(int i) const { return static_cast<char*>(memory_) + static_cast<size_t>(i) * (kStack + page_) + page_; }

  /// Bytes of one stack. AddressSanitizer's redzones make frames several times larger.
#if defined(ANABRANCH_SIMT_ASAN)
  static constexpr size_t kStack = 256 * 1024;
#else
  static constexpr size_t kStack = 64 * 1024;
#endif

 private:
  size_t size() const { return static_cast<size_t>(count_) * (kStack + page_); }

  size_t page_;
  int count_;
  void* memory_;
};

#if defined(__x86_64__)
extern "C" void anabranch_simt_switch(void** save_stack_pointer, void* load_stack_pointer);
// Weak, because every translation unit with a kernel in it brings its own copy.
asm(R"(
.pushsection .text
.weak anabranch_simt_switch
.type anabranch_simt_switch, @function
anabranch_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size anabranch_simt_switch, .-anabranch_simt_switch
.popsection
)");
#endif

/// A suspended flow of control: either a fiber or the scheduler that resumes it.
class Context {
 public:
  /// Makes this the start of entry() on the given stack. entry must not return: it ends by switching away for good.
  void start(char* stack, size_t bytes, void (*entry)()) {
    stack_ = stack;
    bytes_ = bytes;
    fake_stack_ = nullptr;
#if defined(ANABRANCH_SIMT_ASAN)
    __asan_unpoison_memory_region(stack, bytes);  // a fiber abandoned after a fault leaves its redzones behind
#endif
#if defined(__x86_64__)
    // As if entry() had been called: after `ret` pops it, the stack pointer is 8 below a multiple of 16.
    auto* top = reinterpret_cast<uint64_t*>(stack + bytes) - 1;
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    stack_pointer_ = top;
    top[7] = 0;  // the return address of entry(): nobody called it
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  /// Suspends `from` (the running one) and resumes `to`; returns when somebody resumes `from`.
  static void switch_to(Context& from, Context& to) {
#if defined(ANABRANCH_SIMT_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.bytes_);
#endif
#if defined(__x86_64__)
    anabranch_simt_switch(&from.stack_pointer_, to.stack_pointer_);
#else
    swapcontext(&from.context_, &to.context_);
#endif
    from.resumed();
  }

  /// To be called first thing in entry(): `resumer` is the context that resumed this one for the first time.
  void entered([[maybe_unused]] Context& resumer) {
#if defined(ANABRANCH_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &resumer.stack_, &resumer.bytes_);
#endif
  }

 private:
  void resumed() {
#if defined(ANABRANCH_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  const void* stack_ = nullptr;  // lowest byte
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace anabranch::simt
