// See validate.h. Cheap: some comparisons and multiplications per call.
#include "validate.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace fastops {
namespace {

// Sizes and elements of a tensor: with these no count of elements or bytes, of workspaces too, overflows.
constexpr int64_t kMost = int64_t{1} << 48;
// Of a kernel, stride, padding and dilation, as torch's own kernels have it.
constexpr int64_t kMostOption = INT32_MAX;
constexpr int64_t kMostThreads = 1 << 16;

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const std::string& field, const std::string& why) {
  throw std::invalid_argument("fastops: " + field + ": " + why);
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse_value(const char* field, int64_t value, int64_t least,
                                                         int64_t most) {
  refuse(field,
         std::to_string(value) + " is not in [" + std::to_string(least) + ", " + std::to_string(most) + "]");
}

inline void within(const char* field, int64_t value, int64_t least, int64_t most) {
  if (__builtin_expect(value < least || value > most, 0)) refuse_value(field, value, least, most);
}
inline void within(const char* field, const Extent& e, int64_t least, int64_t most) {
  within(field, e.d, least, most);
  within(field, e.h, least, most);
  within(field, e.w, least, most);
}

// A tensor's sizes, none of them negative. Zeros count as ones: the others' product must fit, too.
inline void fits(const char* tensor, int64_t a, int64_t b, const Extent& e) {
  int64_t elements = imax(a, 1);
  for (const int64_t size : {b, e.d, e.h, e.w})
    if (__builtin_mul_overflow(elements, imax(size, 1), &elements) || elements > kMost)
      refuse(tensor, "more than 2^48 elements");
}

inline void floating(const char* field, DType dtype) {
  if (static_cast<uint32_t>(dtype) > static_cast<uint32_t>(DType::kBF16))
    refuse(field, "kernels take float64, float32, float16 and bfloat16");
}

// f(axis) of the axes of extents.
#define FASTOPS_FOR_AXES(f) \
  f(d);                     \
  f(h);                     \
  f(w)

// ---- convolution -------------------------------------------------------------------------------

// What lies after the last element follows from `out`: as much as before it, but for what a stride leaves
// over, what "same" adds, and the output padding of a transposed convolution.
void conv_axis(const char* field, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
               int64_t dilation) {
  __extension__ using Wide = __int128;
  const Wide after = Wide{out - 1} * stride - pad + Wide{dilation} * (kernel - 1) + 1 - in;
  if (after > Wide{pad} + 1 || after <= Wide{pad} - imax(stride, dilation))
    refuse(field, std::to_string(out) + " does not follow from ConvParams.in_ = " + std::to_string(in));
}

int64_t conv_input(const ConvParams& p) { return p.n * p.c * volume(p.in); }
int64_t conv_output(const ConvParams& p) { return p.n * p.k * volume(p.out); }
int64_t conv_weight(const ConvParams& p) { return p.k * (p.c / p.groups) * volume(p.kernel); }
int64_t conv_k(const ConvParams& p) { return p.k; }

// ---- pooling -----------------------------------------------------------------------------------

int64_t pool_input(const PoolParams& p) { return p.n * p.c * volume(p.in); }
int64_t pool_output(const PoolParams& p) { return p.n * p.c * volume(p.out); }

// A plain window: its size is that of floor mode or of ceil mode (fastops/ops/shapes.py).
void pool_axis(const char* field, const PoolAxis& a) {
  if (a.pad > (a.dilation * (a.kernel - 1) + 1) / 2)
    refuse("PoolParams.pad", std::to_string(a.pad) + " is more than half of the window");
  const int64_t span = a.in + 2 * a.pad - a.dilation * (a.kernel - 1) - 1;
  const int64_t least = floor_div(span, a.stride) + 1, last = ceil_div(span, a.stride);
  const int64_t most = last * a.stride >= a.in + a.pad ? last : last + 1;
  if (a.out < 1 || (a.out != least && a.out != most))
    refuse(field, std::to_string(a.out) + " does not follow from PoolParams.in_ = " + std::to_string(a.in));
}

void validate_pool(const PoolParams& p) {
  floating("PoolParams.dtype", p.dtype);
  within("PoolParams.n", p.n, 0, kMost);
  within("PoolParams.c", p.c, 1, kMost);
  within("PoolParams.in_", p.in, 1, kMost);
  within("PoolParams.out", p.out, 0, p.adaptive ? INT32_MAX : kMost);
  fits("PoolParams: x", p.n, p.c, p.in);
  fits("PoolParams: y", p.n, p.c, p.out);
  within("PoolParams.kernel", p.kernel, 1, kMostOption);
  within("PoolParams.stride", p.stride, 1, kMostOption);
  within("PoolParams.pad", p.pad, 0, kMostOption);
  within("PoolParams.dilation", p.dilation, 1, kMostOption);
  if (p.adaptive) {
    // Windows are found by products of both sizes.
#define FASTOPS_AXIS(a)                                                           \
  if (int64_t product; __builtin_mul_overflow(p.in.a + 1, p.out.a + 1, &product)) \
  refuse("PoolParams.out", "times PoolParams.in_ does not fit into 64 bits")
    FASTOPS_FOR_AXES(FASTOPS_AXIS);
#undef FASTOPS_AXIS
    return;
  }
#define FASTOPS_AXIS(a) pool_axis("PoolParams.out." #a, axis_##a(p))
  FASTOPS_FOR_AXES(FASTOPS_AXIS);
#undef FASTOPS_AXIS
}

void validate_average(const PoolParams& p) {
  validate_pool(p);
  if (!p.adaptive) within("PoolParams.dilation", p.dilation, 1, 1);
}

// Positions that a window spans along an axis, at most.
int64_t window_span(const PoolAxis& a) {
  return imin(a.adaptive ? most_taps(a) : (a.kernel - 1) * a.dilation + 1, a.in);
}

void validate_maximum(const PoolParams& p) {
  validate_pool(p);
  const PoolAxis d = axis_d(p), h = axis_h(p), w = axis_w(p);
  // Kernels count positions inside a window in 32 bits, and leave a bit for places outside the input.
  const int64_t planes = window_span(d), rows = planes > 1 ? p.in.h : window_span(h);
  int64_t span;
  if (__builtin_mul_overflow(planes * rows, p.in.w, &span) || span >= int64_t{1} << 30)
    refuse("PoolParams.kernel", "a window spans 2^30 elements of a plane or more");
  switch (p.positions) {
    case IndexType::kI64:
      return;
    case IndexType::kI32:
      if (volume(p.in) > INT32_MAX) refuse("PoolParams.positions", "int32 does not hold them");
      return;
    case IndexType::kU8: {
      int64_t taps = most_taps(d);
      for (const int64_t more : {most_taps(h), most_taps(w)}) taps = imin(taps, 255) * imin(more, 255);
      if (taps >= 255) refuse("PoolParams.positions", "a byte does not number a window's taps");
      return;
    }
  }
  refuse("PoolParams.positions", "unknown type");
}

// ---- unpooling ---------------------------------------------------------------------------------

int64_t unpool_input(const UnpoolParams& p) { return p.n * p.c * volume(p.in); }
int64_t unpool_output(const UnpoolParams& p) { return p.n * p.c * volume(p.out); }

void validate_unpool(const UnpoolParams& p) {
  floating("UnpoolParams.dtype", p.dtype);
  within("UnpoolParams.n", p.n, 0, kMost);
  within("UnpoolParams.c", p.c, 1, kMost);
  within("UnpoolParams.in_", p.in, 1, kMost);
  within("UnpoolParams.out", p.out, 0, kMost);
  fits("UnpoolParams: x", p.n, p.c, p.in);
  fits("UnpoolParams: y", p.n, p.c, p.out);
}

// ---- batch normalisation -----------------------------------------------------------------------

int64_t norm_elements(const BatchNormParams& p) { return p.n * p.c * volume(p.in); }
int64_t norm_channels(const BatchNormParams& p) { return p.c; }

void validate_norm(const BatchNormParams& p) {
  floating("BatchNormParams.dtype", p.dtype);
  const bool sixteen_bits = p.dtype == DType::kF16 || p.dtype == DType::kBF16;
  if (p.param_dtype != p.dtype && !(sixteen_bits && p.param_dtype == DType::kF32))
    refuse("BatchNormParams.param_dtype", "it is dtype, or float32 beside a type of 16 bits");
  within("BatchNormParams.n", p.n, 0, kMost);
  within("BatchNormParams.c", p.c, 0, kMost);
  within("BatchNormParams.in_", p.in, 0, kMost);
  fits("BatchNormParams: x", p.n, p.c, p.in);
}

void running_statistics(const BatchNormParams& p, uintptr_t mean, uintptr_t var) {
  if (p.c > 0 && (!mean != !var || (!mean && !p.training)))
    refuse_null(mean ? "running_var" : "running_mean");
}
void stats_together(const BatchNormParams& p, const uintptr_t* given) {
  if (!given[0] && p.training && norm_elements(p) > 0) refuse_null("x");
  running_statistics(p, given[1], given[2]);
}
void forward_together(const BatchNormParams& p, const uintptr_t* given) {
  running_statistics(p, given[3], given[4]);
}
void backward_together(const BatchNormParams& p, const uintptr_t* given) {
  const bool dx = given[7], dw = given[8];
  if (!given[1] && (dw || (p.training && dx) || p.relu) && norm_elements(p) > 0) refuse_null("x");
}
void double_backward_together(const BatchNormParams& p, const uintptr_t* given) {
  if (p.relu) refuse("BatchNormParams.relu", "the double backward is of batch norm without it");
  const bool ddx = given[5], ddw = given[6], gx = given[8], gw = given[9];
  if (norm_elements(p) == 0) return;
  if (!given[3] && ((p.training && ddx) || ddw)) refuse_null("x");
  if (!given[4] && (gx || gw)) refuse_null("dy");
}

// ---- interpolation -----------------------------------------------------------------------------

int64_t resized_input(const InterpolateParams& p) { return p.n * p.c * volume(p.in); }
int64_t resized_output(const InterpolateParams& p) { return p.n * p.c * volume(p.out); }

// A factor that the caller gave is what the output's size was made with.
void scale_axis(const char* field, int64_t in, int64_t out, double scale) {
  if (scale == 0) return;
  if (!std::isfinite(scale) || scale < 0) refuse(field, "neither 0 nor a finite positive number");
  const double size = static_cast<double>(in) * scale;
  if (!(size < static_cast<double>(kMost)) || static_cast<int64_t>(size) != out)
    refuse(field, std::to_string(scale) + " · " + std::to_string(in) + " is not " + std::to_string(out));
}

bool is_nearest(Filter f) { return f == Filter::kNearest || f == Filter::kNearestExact; }

void validate_any_nearest(const InterpolateParams& p) {
  validate(p);
  if (!is_nearest(p.filter)) refuse("InterpolateParams.filter", "this kernel takes the nearest element");
}
void validate_nearest_adjoint(const InterpolateParams& p) {
  validate_any_nearest(p);
  floating("InterpolateParams.dtype", p.dtype);
}
void validate_any_weighted(const InterpolateParams& p) {
  validate(p);
  if (is_nearest(p.filter)) refuse("InterpolateParams.filter", "this kernel has weights");
  within("InterpolateParams.in_.d", p.in.d, 1, 1);
  within("InterpolateParams.out.d", p.out.d, 1, 1);
  // There are tables of each axis.
  within("InterpolateParams.in_", p.in, 1, UINT32_MAX);
  within("InterpolateParams.out", p.out, 1, UINT32_MAX);
}
void validate_weighted(const InterpolateParams& p) {
  validate_any_weighted(p);
  floating("InterpolateParams.dtype", p.dtype);
}
void validate_weighted_u8(const InterpolateParams& p) {
  validate_any_weighted(p);
  if (p.dtype != DType::kU8) refuse("InterpolateParams.dtype", "this kernel takes uint8");
}

}  // namespace

// ---- what is asked from elsewhere --------------------------------------------------------------

void refuse_null(const char* tensor) { refuse(tensor, "no address, although there are elements"); }

void validate_threads(int64_t threads) { within("threads", threads, 1, kMostThreads); }

void validate(const ConvParams& p) {
  floating("ConvParams.dtype", p.dtype);
  within("ConvParams.n", p.n, 0, kMost);
  within("ConvParams.c", p.c, 1, kMost);
  within("ConvParams.k", p.k, 1, kMost);
  within("ConvParams.groups", p.groups, 1, kMost);
  if (p.c % p.groups != 0 || p.k % p.groups != 0)
    refuse("ConvParams.groups", std::to_string(p.groups) + " does not divide c and k");
  within("ConvParams.in_", p.in, 1, kMost);
  within("ConvParams.out", p.out, 1, kMost);
  within("ConvParams.kernel", p.kernel, 1, kMostOption);
  within("ConvParams.stride", p.stride, 1, kMostOption);
  within("ConvParams.pad", p.pad, 0, kMostOption);
  within("ConvParams.dilation", p.dilation, 1, kMostOption);
#define FASTOPS_AXIS(a) \
  conv_axis("ConvParams.out." #a, p.in.a, p.out.a, p.kernel.a, p.stride.a, p.pad.a, p.dilation.a)
  FASTOPS_FOR_AXES(FASTOPS_AXIS);
#undef FASTOPS_AXIS
  fits("ConvParams: x", p.n, p.c, p.in);
  fits("ConvParams: w", p.k, p.c / p.groups, p.kernel);
  fits("ConvParams: y", p.n, p.k, p.out);
  validate(p.kernel_family);
  within("ConvParams.tile_m", p.tile_m, 0, kMostOption);
  within("ConvParams.tile_n", p.tile_n, 0, kMostOption);
  within("ConvParams.splits", p.splits, 0, kMostOption);
}

void validate(const InterpolateParams& p) {
  if (static_cast<uint32_t>(p.dtype) > static_cast<uint32_t>(DType::kU8))
    refuse("InterpolateParams.dtype", "unknown type");
  if (static_cast<uint32_t>(p.filter) > static_cast<uint32_t>(Filter::kLanczos))
    refuse("InterpolateParams.filter", "unknown filter");
  within("InterpolateParams.n", p.n, 0, kMost);
  within("InterpolateParams.c", p.c, 1, kMost);
  within("InterpolateParams.in_", p.in, 1, kMost);
  within("InterpolateParams.out", p.out, 1, kMost);
  fits("InterpolateParams: x", p.n, p.c, p.in);
  fits("InterpolateParams: y", p.n, p.c, p.out);
#define FASTOPS_AXIS(a) scale_axis("InterpolateParams.scale." #a, p.in.a, p.out.a, p.scale.a)
  FASTOPS_FOR_AXES(FASTOPS_AXIS);
#undef FASTOPS_AXIS
  if (is_nearest(p.filter) && (p.align_corners || p.antialias))
    refuse("InterpolateParams.filter", "the nearest element knows no align_corners and no antialias");
}

void validate(const Device& device) {
  within("Device.capability", device.capability, 0, kMostOption);
  within("Device.multiprocessors", device.multiprocessors, 1, kMostOption);
  within("Device.shared_bytes", device.shared_bytes, 0, kMost);
  within("Device.l2_bytes", device.l2_bytes, 0, kMost);
  if (!std::isfinite(device.clock_hz) || device.clock_hz <= 0) refuse("Device.clock_hz", "not positive");
  if (!std::isfinite(device.bandwidth) || device.bandwidth <= 0) refuse("Device.bandwidth", "not positive");
}

void validate(ConvPass pass) {
  within("pass_", static_cast<int64_t>(pass), 0, static_cast<int64_t>(ConvPass::kWeightGrad));
}

void validate(ConvKernel kernel) {
  within("ConvParams.kernel_family", static_cast<int64_t>(kernel), 0,
         static_cast<int64_t>(ConvKernel::kToeplitz));
}

void validate_taps(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                   int64_t phase) {
  within("in_", in, 0, kMost);
  within("out", out, 0, kMost);
  within("kernel", kernel, 1, kMostOption);
  within("stride", stride, 1, kMostOption);
  within("pad", pad, 0, kMostOption);
  within("dilation", dilation, 1, kMostOption);
  within("phase", phase, 0, stride - 1);
}

void validate_table(const InterpolateParams& p, int axis, bool fixed_point) {
  within("axis", axis, 0, 2);
  if (is_nearest(p.filter)) {
    validate(p);
    if (fixed_point) refuse("fixed_point", "the nearest element has no weights");
  } else {
    validate_any_weighted(p);
  }
  within("InterpolateParams.in_", p.in, 1, INT32_MAX);  // begins are of 32 bits
  within("InterpolateParams.out", p.out, 1, INT32_MAX);
}

// ---- the launchers -----------------------------------------------------------------------------

const Contract<ConvParams> kConv = {validate,
                                    {{"x", conv_input}, {"w", conv_weight}, {"bias"}, {"y", conv_output}}};
const Contract<ConvParams> kConvInputGrad = {
    validate, {{"dy", conv_output}, {"w", conv_weight}, {"bias"}, {"dx", conv_input}}};
const Contract<ConvParams> kConvWeightGrad = {
    validate, {{"dy", conv_output}, {"x", conv_input}, {"dw", conv_weight}, {"db"}}};
const Contract<ConvParams> kConvBackward = {validate,
                                            {{"dy", conv_output},
                                             {"x", conv_input},
                                             {"w", conv_weight},
                                             {"dx", conv_input},
                                             {"dw", conv_weight},
                                             {"db"}}};
const Contract<ConvParams> kConvBiasGrad = {validate, {{"dy", conv_output}, {"db", conv_k}}};

const Contract<PoolParams> kAvgPool = {validate_average, {{"x", pool_input}, {"y", pool_output}}};
const Contract<PoolParams> kAvgPoolAdjoint = {validate_average, {{"dy", pool_output}, {"dx", pool_input}}};
const Contract<PoolParams> kMaxPool = {validate_maximum,
                                       {{"x", pool_input}, {"y", pool_output}, {"positions"}}};
const Contract<PoolParams> kGather = {validate_maximum,
                                      {{"x", pool_input}, {"positions", pool_output}, {"y", pool_output}}};
const Contract<PoolParams> kScatterAdd = {
    validate_maximum, {{"dy", pool_output}, {"positions", pool_output}, {"dx", pool_input}}};

const Contract<UnpoolParams> kMaxUnpool = {
    validate_unpool, {{"x", unpool_input}, {"indices", unpool_input}, {"y", unpool_output}}};
const Contract<UnpoolParams> kMaxUnpoolAdjoint = {
    validate_unpool, {{"dy", unpool_output}, {"indices", unpool_input}, {"dx", unpool_input}}};

const Contract<BatchNormParams> kBatchNormStats = {
    validate_norm,
    {{"x"}, {"running_mean"}, {"running_var"}, {"mean", norm_channels}, {"invstd", norm_channels}},
    stats_together};
const Contract<BatchNormParams> kBatchNormApply = {validate_norm,
                                                   {{"x", norm_elements},
                                                    {"weight"},
                                                    {"bias"},
                                                    {"mean", norm_channels},
                                                    {"invstd", norm_channels},
                                                    {"residual"},
                                                    {"y", norm_elements}}};
const Contract<BatchNormParams> kBatchNorm = {validate_norm,
                                              {{"x", norm_elements},
                                               {"weight"},
                                               {"bias"},
                                               {"running_mean"},
                                               {"running_var"},
                                               {"residual"},
                                               {"mean", norm_channels},
                                               {"invstd", norm_channels},
                                               {"y", norm_elements}},
                                              forward_together};
const Contract<BatchNormParams> kBatchNormBackward = {validate_norm,
                                                      {{"dy", norm_elements},
                                                       {"x"},
                                                       {"weight"},
                                                       {"bias"},
                                                       {"mean", norm_channels},
                                                       {"invstd", norm_channels},
                                                       {"residual"},
                                                       {"dx"},
                                                       {"dw"},
                                                       {"db"},
                                                       {"dresidual"}},
                                                      backward_together};
const Contract<BatchNormParams> kBatchNormDoubleBackward = {validate_norm,
                                                            {{"mean", norm_channels},
                                                             {"invstd", norm_channels},
                                                             {"weight"},
                                                             {"x"},
                                                             {"dy"},
                                                             {"ddx"},
                                                             {"ddw"},
                                                             {"ddb"},
                                                             {"gx"},
                                                             {"gw"},
                                                             {"gdy"}},
                                                            double_backward_together};

const Contract<InterpolateParams> kInterpolateNearest = {validate_any_nearest,
                                                         {{"x", resized_input}, {"y", resized_output}}};
const Contract<InterpolateParams> kInterpolateNearestAdjoint = {
    validate_nearest_adjoint, {{"dy", resized_output}, {"dx", resized_input}}};
const Contract<InterpolateParams> kInterpolateWeighted = {validate_weighted,
                                                          {{"x", resized_input}, {"y", resized_output}}};
const Contract<InterpolateParams> kInterpolateWeightedAdjoint = {
    validate_weighted, {{"dy", resized_output}, {"dx", resized_input}}};
const Contract<InterpolateParams> kInterpolateWeightedU8 = {validate_weighted_u8,
                                                            {{"x", resized_input}, {"y", resized_output}}};

}  // namespace fastops
