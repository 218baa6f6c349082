// The Python module of the emulation: fastops' CUDA launchers, compiled for the emulation; kernels with
// planted bugs; and the settings.
//
// Params are the types that fastops._C registers; whoever calls the launchers has imported it.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../../csrc/cuda/bindings.h"
#include "engine.h"
#include "planted.h"
#include "primitives.h"
#include "sm90.h"

namespace py = pybind11;

namespace {

void configure(const std::string& order, const std::string& copies, uint64_t seed, unsigned workers,
               uint64_t last_blocks, uint64_t many_blocks) {
  simt::Settings s;
  if (order == "random")
    s.order = simt::Order::kRandom;
  else if (order == "reverse")
    s.order = simt::Order::kReverse;
  else if (order != "forward")
    throw std::invalid_argument("order: forward, reverse or random");
  if (copies == "random")
    s.copies = simt::Copies::kRandom;
  else if (copies == "eager")
    s.copies = simt::Copies::kEager;
  else if (copies != "lazy")
    throw std::invalid_argument("copies: lazy, eager or random");
  s.seed = seed;
  s.workers = workers;
  s.last_blocks = last_blocks;
  s.many_blocks = many_blocks;
  simt::settings = s;
}

void bind(py::module_& m) {
  m.def("configure", configure, py::arg("order"), py::arg("copies"), py::arg("seed") = 0,
        py::arg("workers") = 0, py::arg("last_blocks") = 0, py::arg("many_blocks") = 1 << 16);
  fastops::cuda::bind(m.def_submodule("cuda"));
  py::module_ planted = m.def_submodule("planted");
  fastops::kernel(m, "primitives", primitives::run);
  m.attr("primitives_rows") = primitives::kRows;
  py::module_ hopper = m.def_submodule("sm90");
  fastops::kernel(hopper, "tiled", sm90::tiled);
  fastops::kernel(hopper, "im2col", sm90::im2col);
  fastops::kernel(hopper, "matmul", sm90::matmul);
  for (const planted::Kernel& k : planted::kKernels) fastops::kernel(planted, k.name, k.launcher);
}

}  // namespace

// One name per mode: a process may load several.
PYBIND11_MODULE(emulated_plain, m) { bind(m); }
PYBIND11_MODULE(emulated_asan, m) { bind(m); }
PYBIND11_MODULE(emulated_race, m) { bind(m); }
