// The race detector: what the engine tells it. It exists in the build with SIMT_RACE only, where the
// compiler calls it for every access of a kernel to memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {
namespace race {

#if defined(SIMT_RACE)
constexpr bool kOn = true;
// A grid begins: the threads' stacks and other memory of the emulation itself are in `ignored`.
void begin_grid();
void ignore(const void* begin, size_t bytes);
// A block of the grid begins, after the one before has ended; its shared memory is new.
void begin_block(unsigned block, unsigned threads, const void* shared, size_t shared_bytes);
// These threads have met: what each did before, all see after.
void join(const unsigned* threads, size_t count);
// An atomic access and a fence of the current thread; `code` is an address in the kernel.
void atomic(const void* p, size_t bytes, const void* code);
void fence();
// The current thread's copying engine writes `to` and reads `from`, if that is not null; the answer is
// for copied(), when the thread has waited for it.
uint32_t copy(void* to, const void* from, size_t bytes, const void* code);
void copied(uint32_t ticket);
// The same for a read by the engine, and for what the engine of another thread has done.
uint32_t read_beside(const void* from, size_t bytes, const void* code);
void copied_for(unsigned reader, unsigned thread, uint32_t ticket);
// A barrier of sm_90a: arrivals and copies give it what they have done; when the phase turns, whoever has
// waited takes all that.
void give(const void* barrier);
void give_copy(const void* barrier, unsigned thread, uint32_t ticket);
void turn(const void* barrier);
void take(const void* barrier);
#else
constexpr bool kOn = false;
inline void begin_grid() {}
inline void ignore(const void*, size_t) {}
inline void begin_block(unsigned, unsigned, const void*, size_t) {}
inline void join(const unsigned*, size_t) {}
inline void atomic(const void*, size_t, const void*) {}
inline void fence() {}
inline uint32_t copy(void*, const void*, size_t, const void*) { return 0; }
inline void copied(uint32_t) {}
inline uint32_t read_beside(const void*, size_t, const void*) { return 0; }
inline void copied_for(unsigned, unsigned, uint32_t) {}
inline void give(const void*) {}
inline void give_copy(const void*, unsigned, uint32_t) {}
inline void turn(const void*) {}
inline void take(const void*) {}
#endif

}  // namespace race
}  // namespace simt
