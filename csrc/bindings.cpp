// The Python face of the kernels: params structs, and one `def` per launcher, behind the checks of
// validate.h. No logic.
//
// Tensors arrive as addresses; the only Python file that knows them is fastops/backends/native.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(FASTOPS_X86)
#include <cpuid.h>
#endif

#include <string>
#include <vector>

#include "batch_norm.h"
#include "bind.h"
#include "conv_plan.h"
#include "indexed.h"
#include "interpolate_table.h"
#include "pool.h"
#include "threads.h"
#include "validate.h"
#if defined(FASTOPS_CUDA)
#include "cuda/bindings.h"
#endif

namespace py = pybind11;
using namespace fastops;

namespace pybind11 {
namespace detail {
// Extent <-> a tuple (d, h, w).
template <>
struct type_caster<Extent> {
  PYBIND11_TYPE_CASTER(Extent, const_name("tuple[int, int, int]"));
  bool load(handle source, bool) {
    if (!isinstance<tuple>(source) || len(source) != 3) return false;
    const auto t = reinterpret_borrow<tuple>(source);
    value = {t[0].cast<int64_t>(), t[1].cast<int64_t>(), t[2].cast<int64_t>()};
    return true;
  }
  static handle cast(const Extent& e, return_value_policy, handle) {
    return py::make_tuple(e.d, e.h, e.w).release();
  }
};
// Factors <-> a tuple (d, h, w).
template <>
struct type_caster<Factors> {
  PYBIND11_TYPE_CASTER(Factors, const_name("tuple[float, float, float]"));
  bool load(handle source, bool) {
    if (!isinstance<tuple>(source) || len(source) != 3) return false;
    const auto t = reinterpret_borrow<tuple>(source);
    value = {t[0].cast<double>(), t[1].cast<double>(), t[2].cast<double>()};
    return true;
  }
  static handle cast(const Factors& f, return_value_policy, handle) {
    return py::make_tuple(f.d, f.h, f.w).release();
  }
};
}  // namespace detail
}  // namespace pybind11

namespace {

// ---- helpers -----------------------------------------------------------------------------------

// A params struct: built from keyword arguments, each one a field; prints all of its fields.
template <typename Params>
class ParamsClass {
 public:
  ParamsClass(py::module_& m, const char* name) : type_(m, name) {
    type_.def(py::init([](const py::kwargs& fields) {
      py::object self = py::cast(Params{});
      for (const auto& [key, value] : fields) py::setattr(self, key, value);
      return self.cast<Params>();
    }));
    type_.def("__repr__", [](const py::object& self) {
      std::string text = py::str(py::type::of(self).attr("__name__"));
      const char* separator = "(";
      for (const py::handle name : py::type::of(self).attr("fields")) {
        text +=
            separator + py::cast<std::string>(name) + "=" + py::cast<std::string>(py::repr(self.attr(name)));
        separator = ", ";
      }
      return text + ")";
    });
  }
  ~ParamsClass() { type_.attr("fields") = py::tuple(py::cast(names_)); }

  template <typename Field>
  ParamsClass& field(const char* name, Field Params::* member) {
    type_.def_readwrite(name, member);
    names_.push_back(name);
    return *this;
  }

 private:
  py::class_<Params> type_;
  std::vector<std::string> names_;
};

// ---- params ------------------------------------------------------------------------------------

void bind_params(py::module_& m) {
  py::enum_<DType>(m, "DType")
      .value("f64", DType::kF64)
      .value("f32", DType::kF32)
      .value("f16", DType::kF16)
      .value("bf16", DType::kBF16)
      .value("u8", DType::kU8);

  py::enum_<IndexType>(m, "IndexType")
      .value("i64", IndexType::kI64)
      .value("i32", IndexType::kI32)
      .value("u8", IndexType::kU8);

  ParamsClass<PoolParams>(m, "PoolParams")
      .field("dtype", &PoolParams::dtype)
      .field("channels_last", &PoolParams::channels_last)
      .field("n", &PoolParams::n)
      .field("c", &PoolParams::c)
      .field("in_", &PoolParams::in)
      .field("out", &PoolParams::out)
      .field("kernel", &PoolParams::kernel)
      .field("stride", &PoolParams::stride)
      .field("pad", &PoolParams::pad)
      .field("dilation", &PoolParams::dilation)
      .field("adaptive", &PoolParams::adaptive)
      .field("count_include_pad", &PoolParams::count_include_pad)
      .field("divisor_override", &PoolParams::divisor_override)
      .field("positions", &PoolParams::positions);

  py::enum_<ConvKernel>(m, "ConvKernel")
      .value("auto", ConvKernel::kAuto)
      .value("direct", ConvKernel::kDirect)
      .value("depthwise", ConvKernel::kDepthwise)
      .value("stem", ConvKernel::kStem)
      .value("gemm", ConvKernel::kGemm)
      .value("hopper", ConvKernel::kHopper)
      .value("toeplitz", ConvKernel::kToeplitz);
  py::enum_<ConvPass>(m, "ConvPass")
      .value("forward", ConvPass::kForward)
      .value("input_grad", ConvPass::kInputGrad)
      .value("weight_grad", ConvPass::kWeightGrad);

  ParamsClass<Device>(m, "Device")
      .field("capability", &Device::capability)
      .field("multiprocessors", &Device::multiprocessors)
      .field("shared_bytes", &Device::shared_bytes)
      .field("l2_bytes", &Device::l2_bytes)
      .field("clock_hz", &Device::clock_hz)
      .field("bandwidth", &Device::bandwidth)
      .field("hopper_kernels", &Device::hopper_kernels);
  ParamsClass<ConvTile>(m, "ConvTile")
      .field("m", &ConvTile::m)
      .field("n", &ConvTile::n)
      .field("k", &ConvTile::k)
      .field("stages", &ConvTile::stages);
  ParamsClass<ConvPlan>(m, "ConvPlan")
      .field("kernel", &ConvPlan::kernel)
      .field("tile", &ConvPlan::tile)
      .field("vectors", &ConvPlan::vectors)
      .field("copies", &ConvPlan::copies)
      .field("splits", &ConvPlan::splits)
      .field("blocks", &ConvPlan::blocks)
      .field("flops", &ConvPlan::flops)
      .field("bytes", &ConvPlan::bytes)
      .field("waves", &ConvPlan::waves)
      .field("seconds", &ConvPlan::seconds)
      .field("roof", &ConvPlan::roof);

  ParamsClass<ConvParams>(m, "ConvParams")
      .field("dtype", &ConvParams::dtype)
      .field("channels_last", &ConvParams::channels_last)
      .field("weight_channels_last", &ConvParams::weight_channels_last)
      .field("n", &ConvParams::n)
      .field("c", &ConvParams::c)
      .field("k", &ConvParams::k)
      .field("groups", &ConvParams::groups)
      .field("in_", &ConvParams::in)
      .field("out", &ConvParams::out)
      .field("kernel", &ConvParams::kernel)
      .field("stride", &ConvParams::stride)
      .field("pad", &ConvParams::pad)
      .field("dilation", &ConvParams::dilation)
      .field("relu", &ConvParams::relu)
      .field("tf32", &ConvParams::tf32)
      .field("kernel_family", &ConvParams::kernel_family)
      .field("tile_m", &ConvParams::tile_m)
      .field("tile_n", &ConvParams::tile_n)
      .field("splits", &ConvParams::splits);
  ParamsClass<TapAxis>(m, "TapAxis")
      .field("source", &TapAxis::source)
      .field("grid", &TapAxis::grid)
      .field("out0", &TapAxis::out0)
      .field("out_step", &TapAxis::out_step)
      .field("step", &TapAxis::step)
      .field("taps", &TapAxis::taps)
      .field("tap0", &TapAxis::tap0)
      .field("tap_step", &TapAxis::tap_step)
      .field("off0", &TapAxis::off0)
      .field("off_step", &TapAxis::off_step);
  m.def(
      "forward_taps",
      [](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
        validate_taps(in, out, kernel, stride, pad, dilation, 0);
        return forward_taps(in, out, kernel, stride, pad, dilation);
      },
      py::arg("in_"), py::arg("out"), py::arg("kernel"), py::arg("stride"), py::arg("pad"),
      py::arg("dilation"));
  m.def(
      "input_grad_taps",
      [](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
         int64_t phase) {
        validate_taps(in, out, kernel, stride, pad, dilation, phase);
        return input_grad_taps(in, out, kernel, stride, pad, dilation, phase);
      },
      py::arg("in_"), py::arg("out"), py::arg("kernel"), py::arg("stride"), py::arg("pad"),
      py::arg("dilation"), py::arg("phase"));
  m.def(
      "conv_plan",
      [](const ConvParams& p, ConvPass pass, const Device& device) {
        validate(p), validate(pass), validate(device);
        return conv_plan(p, pass, device);
      },
      py::arg("params"), py::arg("pass_"), py::arg("device"));
  m.def(
      "conv_kernel_serves",
      [](ConvKernel kernel, const ConvParams& p, ConvPass pass, const Device& device) {
        validate(kernel), validate(p), validate(pass), validate(device);
        return conv_kernel_serves(kernel, p, pass, device);
      },
      py::arg("kernel"), py::arg("params"), py::arg("pass_"), py::arg("device"));

  ParamsClass<BatchNormParams>(m, "BatchNormParams")
      .field("dtype", &BatchNormParams::dtype)
      .field("param_dtype", &BatchNormParams::param_dtype)
      .field("channels_last", &BatchNormParams::channels_last)
      .field("n", &BatchNormParams::n)
      .field("c", &BatchNormParams::c)
      .field("in_", &BatchNormParams::in)
      .field("training", &BatchNormParams::training)
      .field("momentum", &BatchNormParams::momentum)
      .field("eps", &BatchNormParams::eps)
      .field("relu", &BatchNormParams::relu);

  ParamsClass<UnpoolParams>(m, "UnpoolParams")
      .field("dtype", &UnpoolParams::dtype)
      .field("channels_last", &UnpoolParams::channels_last)
      .field("n", &UnpoolParams::n)
      .field("c", &UnpoolParams::c)
      .field("in_", &UnpoolParams::in)
      .field("out", &UnpoolParams::out);

  py::enum_<Filter>(m, "Filter")
      .value("nearest", Filter::kNearest)
      .value("nearest_exact", Filter::kNearestExact)
      .value("linear", Filter::kLinear)
      .value("cubic", Filter::kCubic)
      .value("lanczos", Filter::kLanczos);

  ParamsClass<InterpolateParams>(m, "InterpolateParams")
      .field("dtype", &InterpolateParams::dtype)
      .field("channels_last", &InterpolateParams::channels_last)
      .field("n", &InterpolateParams::n)
      .field("c", &InterpolateParams::c)
      .field("in_", &InterpolateParams::in)
      .field("out", &InterpolateParams::out)
      .field("filter", &InterpolateParams::filter)
      .field("scale", &InterpolateParams::scale)
      .field("align_corners", &InterpolateParams::align_corners)
      .field("antialias", &InterpolateParams::antialias);
  ParamsClass<InterpolateTable>(m, "InterpolateTable")
      .field("taps", &InterpolateTable::taps)
      .field("begin", &InterpolateTable::begin)
      .field("count", &InterpolateTable::count)
      .field("weight", &InterpolateTable::weight)
      .field("precision", &InterpolateTable::precision);
  m.def(
      "interpolate_table",
      [](const InterpolateParams& p, int axis, bool adjoint, bool fixed_point) {
        validate_table(p, axis, fixed_point);
        return interpolate_table(p, axis, adjoint, fixed_point);
      },
      py::arg("params"), py::arg("axis"), py::arg("adjoint"), py::arg("fixed_point"));
}

// ---- launchers ---------------------------------------------------------------------------------

// Each with its contract (validate.h) and, where it wants a workspace, the function that says how many bytes.
template <cpu::Isa isa>
void bind_cpu(py::module_ m) {
  kernel(m, "conv", cpu::conv<isa>, kConv, cpu::conv_workspace<isa>);
  kernel(m, "conv_input_grad", cpu::conv_input_grad<isa>, kConvInputGrad,
         cpu::conv_input_grad_workspace<isa>);
  kernel(m, "conv_weight_grad", cpu::conv_weight_grad<isa>, kConvWeightGrad,
         cpu::conv_weight_grad_workspace<isa>);
  kernel(m, "conv_backward", cpu::conv_backward<isa>, kConvBackward, cpu::conv_backward_workspace<isa>);
  kernel(m, "conv_bias_grad", cpu::conv_bias_grad<isa>, kConvBiasGrad);

  kernel(m, "avg_pool", cpu::avg_pool<isa>, kAvgPool);
  kernel(m, "avg_pool_adjoint", cpu::avg_pool_adjoint<isa>, kAvgPoolAdjoint);

  kernel(m, "max_pool", cpu::max_pool<isa>, kMaxPool);
  kernel(m, "gather", cpu::gather<isa>, kGather);
  kernel(m, "scatter_add", cpu::scatter_add<isa>, kScatterAdd);
  kernel(m, "max_unpool", cpu::max_unpool<isa>, kMaxUnpool);
  kernel(m, "max_unpool_adjoint", cpu::max_unpool_adjoint<isa>, kMaxUnpoolAdjoint,
         max_unpool_adjoint_workspace);

  kernel(m, "batch_norm_stats", cpu::batch_norm_stats<isa>, kBatchNormStats, batch_norm_stats_workspace);
  kernel(m, "batch_norm_apply", cpu::batch_norm_apply<isa>, kBatchNormApply, batch_norm_apply_workspace);
  kernel(m, "batch_norm", cpu::batch_norm<isa>, kBatchNorm, batch_norm_forward_workspace);
  kernel(m, "batch_norm_backward", cpu::batch_norm_backward<isa>, kBatchNormBackward,
         batch_norm_backward_workspace);
  kernel(m, "batch_norm_double_backward", cpu::batch_norm_double_backward<isa>, kBatchNormDoubleBackward,
         batch_norm_double_backward_workspace);

  kernel(m, "interpolate_nearest", cpu::interpolate_nearest<isa>, kInterpolateNearest);
  kernel(m, "interpolate_nearest_adjoint", cpu::interpolate_nearest_adjoint<isa>, kInterpolateNearestAdjoint);
  kernel(m, "interpolate_weighted", cpu::interpolate_weighted<isa>, kInterpolateWeighted,
         cpu::interpolate_weighted_workspace<isa>);
  kernel(m, "interpolate_weighted_adjoint", cpu::interpolate_weighted_adjoint<isa>,
         kInterpolateWeightedAdjoint, cpu::interpolate_weighted_adjoint_workspace<isa>);
  kernel(m, "interpolate_weighted_u8", cpu::interpolate_weighted_u8<isa>, kInterpolateWeightedU8,
         cpu::interpolate_weighted_u8_workspace<isa>);
}

// The instruction sets that are compiled in and that this processor has, worst first.
std::vector<std::string> usable_isas() {
  std::vector<std::string> isas = {"baseline"};
#if defined(FASTOPS_X86)
  __builtin_cpu_init();
  unsigned eax, ebx, ecx = 0, edx;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  if (!f16c || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return isas;
  isas.push_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    isas.push_back("avx512");
#endif
  return isas;
}

}  // namespace

// Without a GIL, too: nothing here is written by two threads but atomics.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Kernels of fastops. Internal: use fastops.functional.";
  bind_params(m);
  m.def("set_min_work_per_thread", &set_min_work_per_thread, py::arg("steps"));
  m.def("set_openmp_runtime", &set_openmp_runtime, py::arg("gomp_parallel"));
  m.def("usable_isas", &usable_isas);
  m.attr("compiler") = __VERSION__;
  m.attr("invalid_index") = kInvalidIndex;

  // Every build has the same names; what is not compiled in is empty.
  bind_cpu<cpu::Isa::kBaseline>(m.def_submodule("cpu_baseline"));
  py::module_ avx2 = m.def_submodule("cpu_avx2"), avx512 = m.def_submodule("cpu_avx512");
  py::module_ cuda = m.def_submodule("cuda");
#if defined(FASTOPS_X86)
  bind_cpu<cpu::Isa::kAvx2>(avx2);
  bind_cpu<cpu::Isa::kAvx512>(avx512);
#endif
#if defined(FASTOPS_CUDA)
  cuda::bind(cuda);
  m.attr("cuda_version") = FASTOPS_CUDA;
  m.attr("cuda_archs") = FASTOPS_CUDA_ARCHS;
#else
  m.attr("cuda_version") = "";
  m.attr("cuda_archs") = "";
#endif
}
