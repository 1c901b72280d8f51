// A CUDA thread of the stand-in is a fiber: a stack of its own, and a switch that saves what a called function must
// keep. All fibers share one thread of the operating system.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <utility>
#include <vector>

extern "C" void fusedrnn_switch_fiber(void** from_stack, void* to_stack);
#if defined(__x86_64__)
asm(R"(.weak fusedrnn_switch_fiber
fusedrnn_switch_fiber: pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi); movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret)");
#elif defined(__aarch64__)
asm(R"(.weak fusedrnn_switch_fiber
fusedrnn_switch_fiber: sub sp,sp,#160
 stp x19,x20,[sp]; stp x21,x22,[sp,#16]; stp x23,x24,[sp,#32]; stp x25,x26,[sp,#48]; stp x27,x28,[sp,#64]
 stp x29,x30,[sp,#80]
 stp d8,d9,[sp,#96]; stp d10,d11,[sp,#112]; stp d12,d13,[sp,#128]; stp d14,d15,[sp,#144]
 mov x2,sp; str x2,[x0]; mov sp,x1
 ldp x19,x20,[sp]; ldp x21,x22,[sp,#16]; ldp x23,x24,[sp,#32]; ldp x25,x26,[sp,#48]; ldp x27,x28,[sp,#64]
 ldp x29,x30,[sp,#80]
 ldp d8,d9,[sp,#96]; ldp d10,d11,[sp,#112]; ldp d12,d13,[sp,#128]; ldp d14,d15,[sp,#144]
 add sp,sp,#160; ret)");
#else
#error "the stand-in for CUDA devices knows how to switch stacks on x86-64 and AArch64 only"
#endif

namespace fusedrnn::host_device {
// Stacks are kept for the next launch: the operating system clears fresh ones, which costs more than a small kernel.
class Stack {
 public:
  static constexpr size_t kBytes = 64 << 10;
  Stack() {
    if (kept().empty()) {
      bytes_.reset(new char[kBytes]);
    } else {
      bytes_ = std::move(kept().back());
      kept().pop_back();
    }
  }
  Stack(Stack&&) = default;
  ~Stack() {
    if (bytes_) kept().push_back(std::move(bytes_));
  }
  // What to switch to so that `entry` starts on this stack. It must not return.
  void* start(void (*entry)()) const {
    const uintptr_t odd = (reinterpret_cast<uintptr_t>(bytes_.get()) + kBytes) % 16;
    void** top = reinterpret_cast<void**>(bytes_.get() + kBytes - odd);
#if defined(__x86_64__)
    *--top = nullptr;  // the entry's return address: a called function finds its stack 8 bytes off 16
    *--top = reinterpret_cast<void*>(entry);
    return static_cast<void*>(top - 6);
#else
    top -= 20;
    top[11] = reinterpret_cast<void*>(entry);  // x30
    return top;
#endif
  }

 private:
  static std::vector<std::unique_ptr<char[]>>& kept() {
    static std::vector<std::unique_ptr<char[]>> stacks;
    return stacks;
  }
  std::unique_ptr<char[]> bytes_;
};
}  // namespace fusedrnn::host_device
