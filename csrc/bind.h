// How a launcher becomes a function of a Python module.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastops {
namespace {

// How an argument of a launcher crosses from Python: pointers as addresses, the rest as it is.
template <typename A>
struct Wire {
  using type = A;
  static A unwrap(A a) { return a; }
};
template <typename T>
struct Wire<T*> {
  using type = uintptr_t;
  static T* unwrap(uintptr_t address) { return reinterpret_cast<T*>(address); }
};

// Binds a launcher; the GIL is released while it runs.
template <typename... Args>
void kernel(pybind11::module_& m, const char* name, void (*launcher)(Args...)) {
  m.def(name, [launcher](typename Wire<Args>::type... args) {
    pybind11::gil_scoped_release nogil;
    launcher(Wire<Args>::unwrap(args)...);
  });
}

}  // namespace
}  // namespace fastops
