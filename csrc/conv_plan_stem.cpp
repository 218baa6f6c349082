// Plans of the kernels for few input channels: conv_stem*.cu.
#include <algorithm>

#include "conv_cost.h"
#include "conv_stem.h"

namespace fastops {
namespace {

constexpr double kIssue = 4 * 32;  // instructions of a thread per multiprocessor and clock

bool is_three(const ConvParams& p) { return p.dtype == DType::kF32 && !p.tf32; }

// Whether coordinates along an axis, and places in a patch, are small enough.
bool fits_stem(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  constexpr int64_t limit = int64_t{1} << 26;
  return in < limit && pad < limit && out < limit && (dilation == 1 || kernel == 1) && kernel >= 1 &&
         kernel <= 16 && stride <= 4;
}

// Clocks to bring a patch: of instructions (an element's place, bounds, load and stores), and of stores to
// shared memory, which in contiguous layouts are a channel apart.
double patch_issue(const StemPatch& patch) {
  return static_cast<double>(patch.rows * patch.pitch) * (patch.second ? 26 : 24) / kIssue;
}
double patch_shared(const StemPatch& patch) { return static_cast<double>(patch.elements) / 32 * 1.5; }

double patch_bytes(const ConvParams& p, const StemPatch& patch) {
  return static_cast<double>(patch.rows * patch.pitch * element_bytes(p.dtype));
}

// Clocks that a tile takes of a multiprocessor on which `blocks` take turns: while one waits for memory, a
// latency for each batch of its patch's elements, the others work.
double tile_clocks(double work, const StemPatch& patch, int64_t threads, int64_t batch, double blocks) {
  const double batches = static_cast<double>(ceil_div(patch.rows * patch.pitch, threads * batch));
  return std::max(work, (work + 700 * batches + 300) / blocks);
}

// How many blocks a multiprocessor holds: of up to 128 registers a thread, and by shared memory.
int64_t resident(int64_t threads, int64_t shared, const Device& device) {
  return imax(1, imin(512 / threads, device.shared_bytes / shared));
}

ConvPlan forward_plan(const ConvParams& p, int64_t columns, const Device& device) {
  const StemForward of(p, columns);
  const StemPatch patch(p, kStemRows, element_bytes(p.dtype) == 2);
  const int64_t bytes = element_bytes(p.dtype), e = 16 / bytes, pixels = kStemRows * kStemColumns;
  const int64_t tiles = p.n * ceil_div(p.out.h, kStemRows) * ceil_div(p.out.w, kStemColumns);
  const int64_t column_tiles = ceil_div(p.k, columns);
  const int64_t warps = is_three(p) ? 8 : 4;  // of a block
  ConvPlan plan;
  plan.kernel = ConvKernel::kStem;
  plan.tile = {pixels, columns, of.steps * 4 * e, 1};
  // Blocks that stay, and share the tiles.
  const int64_t places = resident(32 * warps, of.shared, device) * device.multiprocessors;
  const int64_t workers = imax(1, imin(tiles, places / column_tiles));
  plan.blocks = workers * column_tiles;

  const double steps = static_cast<double>(of.steps), outputs = static_cast<double>(pixels * columns);
  const double multiply =
      2 * outputs * steps * static_cast<double>(4 * e) / (rates(device).tensor / tensor_cost(p));
  // A warp's step: twice 8 words of 32 pixels and two of the table, and 64 bytes of each weight. y is staged.
  const double warp_step = 2 * (8 + 2 + static_cast<double>(4 * columns / warps) / 4);
  const double staged = outputs * static_cast<double>(bytes) / 128 * (p.channels_last || bytes == 4 ? 2 : 3);
  const double shared = static_cast<double>(warps) * steps * warp_step + staged + patch_shared(patch);
  // Instructions: a step's loads and addresses, and mma's; the epilogue; stores of 16 bytes or of elements.
  const bool wide = (p.channels_last ? p.k : p.out.w) % e == 0;
  const double issue = static_cast<double>(warps) * steps * 2 * 55 / 4 + patch_issue(patch) +
                       outputs * (4 + 15 / (wide ? static_cast<double>(e) : 1)) / kIssue;
  const double setup = static_cast<double>(columns * of.steps * 4 * e) * 20 / kIssue + 1000;
  const double each = static_cast<double>(ceil_div(tiles, workers));
  const double turns = static_cast<double>(ceil_div(plan.blocks, device.multiprocessors));
  const double work = std::max(multiply, std::max(shared, issue)) / kStemReach;
  finish(plan, p, device,
         {each * tile_clocks(work, patch, 32 * warps, 8, turns) + setup,
          each * patch_bytes(p, patch) + static_cast<double>(columns * of.steps * 64), 0, 1});
  return plan;
}

// The best split of a weight gradient with tiles of so many columns.
ConvPlan grad_plan(const ConvParams& p, int64_t tile_columns, const Device& device) {
  const StemGrad of(p);
  const int64_t rows = stem_grad_rows(p), bytes = element_bytes(p.dtype), e = 16 / bytes;
  const StemPatch patch(p, rows, false);
  const int64_t pixels = rows * kStemColumns, columns = conv_taps(p) * p.c;
  const int64_t tiles = p.n * ceil_div(p.out.h, rows) * ceil_div(p.out.w, kStemColumns);
  const int64_t in_all = ceil_div(p.k, 64) * ceil_div(columns + 1, tile_columns);
  const double weights = static_cast<double>(p.k * columns);

  const double of_dy = static_cast<double>(64 * pixels * bytes);
  const double multiply =
      2 * 64 * static_cast<double>(tile_columns * pixels) / (rates(device).tensor / tensor_cost(p));
  // For an mma's depth of pixels a warp reads 64 rows of dy and 32 columns: single elements.
  const double depths = static_cast<double>(pixels / (2 * e) * tile_columns / 32);
  const double reads = bytes == 2 ? 16 : 8;
  const double shared = depths * (16 + reads) + of_dy / 128 + patch_shared(patch);
  const bool vectors = (p.channels_last ? p.k : p.out.w) % e == 0;
  const double issue =
      depths * (3 * reads + 30) / 4 + patch_issue(patch) +
      static_cast<double>(64 * pixels) * (vectors ? 12.0 / static_cast<double>(e) : 20) / kIssue;
  const double work = std::max(multiply, std::max(shared, issue)) / kStemReach;

  ConvPlan best;
  const int64_t threads = (tile_columns == 160 ? 160 : 128) * (is_three(p) ? 4 : bytes == 4 ? 2 : 1);
  for (int64_t wave = 1, waves = resident(threads, of.shared, device); wave <= waves; ++wave) {
    ConvPlan plan;
    plan.kernel = ConvKernel::kStem;
    plan.tile = {64, tile_columns, pixels, 2};
    // All parts take 64 MiB at most.
    const int64_t most = imin(tiles, static_cast<int64_t>(67e6 / (4 * weights)));
    plan.splits = imax(1, imin(wave * device.multiprocessors / in_all, most));
    plan.blocks = in_all * plan.splits;
    const double each = static_cast<double>(ceil_div(tiles, plan.splits));
    // Parts are written and read again.
    const double parts = 8 * weights * static_cast<double>(plan.splits);
    const double turns = static_cast<double>(ceil_div(plan.blocks, device.multiprocessors));
    finish(plan, p, device,
           {each * tile_clocks(work, patch, threads, 4, turns) + 2000, each * (patch_bytes(p, patch) + of_dy),
            parts, 2});
    if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
  }
  return best;
}

}  // namespace

bool stem_serves(const ConvParams& p, ConvPass pass) {
  if (!is_flat(p) || p.dtype == DType::kF64 || p.groups != 1 || p.c < 1 || p.c > 4 ||
      pass == ConvPass::kInputGrad ||
      !fits_stem(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) ||
      !fits_stem(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w))
    return false;
  const int64_t shared =
      pass == ConvPass::kForward ? StemForward(p, p.k <= 32 ? 32 : 64).shared : StemGrad(p).shared;
  // Offsets inside an image of x, with the rows of a patch beyond it, and inside a tile of dy are counted in
  // 32 bits.
  return shared <= kStemShared && p.in.w * p.c < int64_t{1} << 24 && p.n < int64_t{1} << 31 &&
         p.c * volume(p.in) < int64_t{1} << 30 && p.k <= int64_t{1} << 20 &&
         p.out.w * p.k < int64_t{1} << 27 && volume(p.out) < int64_t{1} << 25;
}

ConvPlan stem_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  ConvPlan best;
  if (pass == ConvPass::kForward) {
    for (const int64_t columns : {64, 32}) {
      if (columns == 64 && p.k <= 32) continue;
      const ConvPlan plan = forward_plan(p, columns, device);
      if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
    }
  } else {
    for (const int64_t columns : {160, 64, 32}) {
      if (columns == 160 && is_three(p)) continue;  // more sums than registers
      const ConvPlan plan = grad_plan(p, columns, device);
      if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
    }
  }
  return best;
}

}  // namespace fastops
