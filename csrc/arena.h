// How a kernel divides its workspace, on the host.
#pragma once

#include <cstdint>

namespace fastops {
namespace {

// Hands out pieces of a workspace; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <typename E>
  E* take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(E)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<E*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace fastops
