// Fibers: stacks between which one thread of the operating system switches.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the registers that a callee keeps and the stack pointer in *save; goes on where `to` was saved.
extern "C" void simt_switch(void** save, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
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
.size simt_switch, . - simt_switch
)");
#else
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  // The stack that runs already.
  Fiber() = default;
  // Will run entry(), which never returns, on `stack`.
  Fiber(char* stack, size_t size, void (*entry)()) : bottom_(stack), size_(size) {
#if defined(__x86_64__)
    // As if entry() had been called by nobody, and interrupted before its first instruction.
    auto** top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    saved_ = top;
#else
    getcontext(&saved_);
    saved_.uc_stack.ss_sp = stack;
    saved_.uc_stack.ss_size = size;
    saved_.uc_link = nullptr;
    makecontext(&saved_, entry, 0);
#endif
  }

  // From this fiber, which runs, to another. Comes back when another fiber switches to this one.
  void switch_to(Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#endif
#if defined(__x86_64__)
    simt_switch(&saved_, to.saved_);
#else
    swapcontext(&saved_, &to.saved_);
#endif
    arrived(nullptr);
  }

  // To be called first by entry(), with the fiber that it came from.
  void arrived([[maybe_unused]] Fiber* from) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
    if (from) from->bottom_ = bottom, from->size_ = size;
#endif
  }

 private:
  [[maybe_unused]] const void* bottom_ = nullptr;
  [[maybe_unused]] size_t size_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;
#if defined(__x86_64__)
  void* saved_ = nullptr;
#else
  ucontext_t saved_;
#endif
};

}  // namespace simt
