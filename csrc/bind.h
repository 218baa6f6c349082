// How a launcher becomes a function of a Python module.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "validate.h"

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

// A daemon thread's kernel may outlive Python. Up to 3.13 whoever then asks for the GIL is made to exit: a
// forced unwinding, which ends the process where it meets a destructor ("terminate called without an active
// exception"). So the thread waits here for the process's own end, as Python 3.14 has it wait.
inline void take_gil(PyThreadState* state) {
#if defined(__GLIBCXX__) && defined(__GLIBC__)
  try {
    PyEval_RestoreThread(state);
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  PyEval_RestoreThread(state);
#endif
}

// f(), while other threads may have the GIL.
template <typename F>
void without_gil(F f) {
  PyThreadState* state = PyEval_SaveThread();
  try {
    f();
  } catch (...) {
    take_gil(state);
    throw;
  }
  take_gil(state);
}

// Binds a launcher; the GIL is released while it runs.
template <typename... Args>
void kernel(pybind11::module_& m, const char* name, void (*launcher)(Args...)) {
  m.def(name, [launcher](typename Wire<Args>::type... args) {
    without_gil([&] { launcher(Wire<Args>::unwrap(args)...); });
  });
}

// Binds a launcher that is called only with what its contract allows; and, where it wants a workspace, the
// function that says how many bytes, given the params (and, on the CPU, the number of threads), as
// "<op>_workspace", where the backend looks for it.
template <typename P, typename... Args, typename... Threads>
void kernel(pybind11::module_& m, const char* name, void (*launcher)(const P&, Args...),
            const Contract<P>& contract, int64_t (*workspace)(const P&, Threads...)) {
  constexpr size_t last = sizeof...(Args) - 1;  // the number of threads, or the stream
  constexpr bool on_cpu = (std::is_same_v<Args, int> || ...);
  m.def(name, [launcher, &contract, workspace](const P& p, typename Wire<Args>::type... args) {
    contract.params(p);
    const uintptr_t values[] = {static_cast<uintptr_t>(args)...};
    if constexpr (on_cpu) validate_threads(static_cast<int>(values[last]));
    size_t next = validate_operands(contract, p, values);
    if (workspace != nullptr && values[next++] == 0 &&
        workspace(p, static_cast<Threads>(values[last])...) > 0)
      refuse_null("workspace");
    for (; next < last; ++next)
      if (values[next] == 0) refuse_null("report");
    without_gil([&] { launcher(p, Wire<Args>::unwrap(args)...); });
  });
  if (workspace != nullptr)
    m.def((std::string(name) + "_workspace").c_str(), [&contract, workspace](const P& p, Threads... threads) {
      contract.params(p);
      (validate_threads(threads), ...);
      return workspace(p, threads...);
    });
}
template <typename P, typename... Args>
void kernel(pybind11::module_& m, const char* name, void (*launcher)(const P&, Args...),
            const Contract<P>& contract) {
  kernel(m, name, launcher, contract, static_cast<int64_t (*)(const P&)>(nullptr));
}

}  // namespace
}  // namespace fastops
