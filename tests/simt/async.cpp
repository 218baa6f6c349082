// What async.h's twins do: barriers that count bytes, copies of boxes and products that go on beside the
// threads, as late or as early as the settings say.
#include "async.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "processor.h"
#include "race.h"
#include "tensor_maps.h"

namespace simt {
namespace {

constexpr uint64_t kBarrierMagic = 0x5AFEBA221E25C0DE;

struct Barrier {
  uint32_t arrivals = 0;  // of a phase
  uint32_t missing = 0;   // of this one
  int64_t bytes = 0;      // that are expected and have not come
  uint32_t parity = 0;    // of this phase
  bool fenced = false;
  std::vector<EmulatedThread*> waiting;
};

struct TensorCopy {
  void* barrier;
  std::vector<Piece> pieces;
  unsigned thread;
  uint32_t ticket;
};

// One product of a warp.
struct Product {
  float* d[32];
  unsigned columns, warp;  // the warp's place in its warpgroup
  uint64_t a, b;
  bool bfloat, across[2];
  unsigned group;
  std::vector<float> left, right;  // 16×16, columns×16; empty: not yet read
  unsigned thread;
  uint32_t ticket;
};

struct Warp {
  std::deque<Product> products;
  std::map<float*, std::vector<float>> sums;  // of accumulators that are under way, by a lane's registers
  unsigned groups = 0, issued = 0;
  bool fenced = false;
};

const float* numbers(bool bfloat) {
  static const std::vector<float> tables[2] = {
      [] {
        std::vector<float> all(65536);
        for (unsigned i = 0; i < 65536; ++i)
          all[i] = static_cast<float>(bits<__half>(static_cast<uint16_t>(i)));
        return all;
      }(),
      [] {
        std::vector<float> all(65536);
        for (unsigned i = 0; i < 65536; ++i) all[i] = bits<float>(i << 16);
        return all;
      }(),
  };
  return tables[bfloat].data();
}

// Where the 128-byte swizzle puts what is at this offset.
size_t swizzled(size_t offset) { return offset ^ (offset / 128 % 8 * 16); }

}  // namespace

struct Async {
  Processor& processor;
  std::map<void*, Barrier> barriers;
  std::vector<TensorCopy> copies;
  Warp warps[kMaxThreads / 32];

  explicit Async(Processor& p) : processor(p) {}

  void begin_block() {
    barriers.clear();
    copies.clear();
    for (Warp& warp : warps) warp = Warp();
  }

  static EmulatedThread& self() { return Processor::self(); }
  Warp& warp() { return warps[self().index / 32]; }
  bool now() {
    return settings.copies == Copies::kEager || (settings.copies == Copies::kRandom && random() % 2 == 0);
  }
  uint64_t random() { return processor.random_(); }
  std::string why_ends_badly() const;

  Barrier& barrier(void* p, const char* name, Site site) {
    const auto found = barriers.find(p);
    if (found == barriers.end()) fail(site, "%s: no barrier has been made there", name);
    if (std::memcmp(p, &kBarrierMagic, sizeof kBarrierMagic) != 0)
      fail(site, "%s: the barrier has been overwritten", name);
    return found->second;
  }
  void check_over(void* p, Barrier& b);
  void perform(size_t i);
  void some_copies();
  bool late_copy();

  void read(Product& product);
  void finish(Warp& warp, Product& product);
  // The operand's element (row, column): what is at its place in shared memory. Across: a line is of 64 rows.
  const char* element(uint64_t matrix, bool across, unsigned row, unsigned column) const {
    const size_t start = (matrix & 0x3FFF) * 16, between = (matrix >> 32 & 0x3FFF) * 16;
    if (!across) return processor.arena_ + swizzled(start + row / 8 * between + row % 8 * 128 + column * 2);
    const size_t between_rows = (matrix >> 16 & 0x3FFF) * 16;
    return processor.arena_ +
           swizzled(start + row / 64 * between_rows + column / 8 * between + column % 8 * 128 + row % 64 * 2);
  }
};

// ---- barriers -------------------------------------------------------------------------------------------

void Async::check_over(void* p, Barrier& b) {
  if (b.missing > 0 || b.bytes != 0) return;
  b.missing = b.arrivals;
  b.parity ^= 1;
  race::turn(p);
  for (EmulatedThread* t : b.waiting) processor.make_ready(*t);
  b.waiting.clear();
}

void mbarrier_init(void* p, uint32_t arrivals, Site site) {
  check_shared(p, 8, "barrier_init", site);
  if (reinterpret_cast<uintptr_t>(p) % 8 != 0) fail(site, "barrier_init: not at a multiple of 8");
  if (arrivals == 0) fail(site, "barrier_init: no arrivals");
  Barrier& b = processor->async().barriers[p];
  b = Barrier();
  b.arrivals = b.missing = arrivals;
  std::memcpy(p, &kBarrierMagic, sizeof kBarrierMagic);
}

void mbarrier_fence_init() {
  for (auto& [p, b] : processor->async().barriers) b.fenced = true;
}

void mbarrier_arrive(void* p, uint32_t bytes, Site site) {
  Async& async = processor->async();
  Barrier& b = async.barrier(p, "barrier_arrive", site);
  b.bytes += bytes;
  --b.missing;  // a phase that has seen all is over at once, or waits for bytes
  if (b.missing == ~0u) fail(site, "barrier_arrive: more arrivals than the phase has");
  race::give(p);
  async.check_over(p, b);
  async.some_copies();
}

void mbarrier_wait(void* p, uint32_t parity, Site site) {
  Async& async = processor->async();
  async.some_copies();
  Barrier* b = &async.barrier(p, "barrier_wait", site);
  while (b->parity == (parity & 1)) {
    b->waiting.push_back(&Async::self());
    async.processor.wait(State::kMbarrier, "barrier_wait", site);
    b = &async.barrier(p, "barrier_wait", site);
  }
  race::take(p);
}

uint32_t shared_address(const void* p, Site site) {
  check_shared(p, 1, "shared_address", site);
  const auto offset = static_cast<const char*>(p) - processor->arena();
  if (offset >= 1 << 18) fail(site, "shared_address: beyond what the emulation can address");
  return static_cast<uint32_t>(offset);
}

// ---- copies ---------------------------------------------------------------------------------------------

void Async::perform(size_t i) {
  const TensorCopy copy = std::move(copies[i]);
  copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(i));
  for (const Piece& piece : copy.pieces) {
    if (piece.from)
      std::memcpy(piece.to, piece.from, 16);
    else
      std::memset(piece.to, 0, 16);
  }
  const auto found = barriers.find(copy.barrier);
  if (found == barriers.end()) return;
  found->second.bytes -= static_cast<int64_t>(16 * copy.pieces.size());
  race::give_copy(copy.barrier, copy.thread, copy.ticket);
  check_over(copy.barrier, found->second);
}

// At some moments some of the copies happen.
void Async::some_copies() {
  if (settings.copies != Copies::kRandom) return;
  while (!copies.empty() && random() % 4 == 0) perform(random() % copies.size());
}

// No thread can go on: a copy happens; whether there was one.
bool Async::late_copy() {
  if (copies.empty()) return false;
  perform(settings.copies == Copies::kRandom ? random() % copies.size() : 0);
  return true;
}

void tensor_copy(void* to, const CUtensorMap* of, void* p, int rank, const int* first, const uint16_t* more,
                 Site site) {
  Async& async = processor->async();
  Map map;
  std::memcpy(&map, of, sizeof map);
  if (map.magic != kMapMagic) fail(site, "tensor_copy: not a tensor map");
  if (map.rank != rank || map.im2col != (more != nullptr))
    fail(site, "tensor_copy: the map is of another kind");
  if (reinterpret_cast<uintptr_t>(of) % 64 != 0) fail(site, "tensor_copy: a map not at a multiple of 64");
  if (more && (more[0] > 255 || more[1] > 255)) fail(site, "tensor_copy: offsets beyond 255");
  const Barrier& b = async.barrier(p, "tensor_copy", site);
  if (!b.fenced) fail(site, "tensor_copy: no fence_barrier_init since the barrier has been made");
  if (reinterpret_cast<uintptr_t>(to) % 1024 != 0)
    fail(site, "tensor_copy: swizzled, but not to a multiple of 1024");
  TensorCopy copy = {p, pieces_of(map, static_cast<char*>(to), first, more), Async::self().index, 0};
  check_shared(to, 16 * copy.pieces.size(), "tensor_copy", site);
  for (Piece& piece : copy.pieces) {
    piece.to =
        const_cast<char*>(processor->arena()) + swizzled(static_cast<size_t>(piece.to - processor->arena()));
    copy.ticket = race::copy(piece.to, piece.from, 16, __builtin_return_address(0));
  }
  async.copies.push_back(std::move(copy));
  if (async.now()) async.perform(async.copies.size() - 1);
  async.some_copies();
}

// ---- products -------------------------------------------------------------------------------------------

void Async::read(Product& product) {
  const float* const value = numbers(product.bfloat);
  const auto matrix = [&](uint64_t from, bool across, unsigned first, unsigned rows) {
    std::vector<float> all(rows * 16);
    for (unsigned r = 0; r < rows; ++r)
      for (unsigned c = 0; c < 16; ++c) {
        uint16_t raw;
        std::memcpy(&raw, element(from, across, first + r, c), 2);
        all[r * 16 + c] = value[raw];
      }
    return all;
  };
  product.left = matrix(product.a, product.across[0], 16 * product.warp, 16);
  product.right = matrix(product.b, product.across[1], 0, product.columns);
}

// The result of a product, into `sums`.
void Async::finish(Warp& warp, Product& product) {
  if (product.left.empty()) read(product);
  for (unsigned lane = 0; lane < 32; ++lane) {
    std::vector<float>& sums = warp.sums.at(product.d[lane]);
    for (unsigned q = 0; q < sums.size(); ++q) {
      const float* const left = &product.left[(lane / 4 + q / 2 % 2 * 8) * 16];
      const float* const right = &product.right[(q / 4 * 8 + lane % 4 * 2 + q % 2) * 16];
      double sum = sums[q];
      for (unsigned k = 0; k < 16; ++k) sum += double{left[k]} * double{right[k]};
      sums[q] = static_cast<float>(sum);
    }
  }
}

void wgmma_fence(Site site) {
  collective(~0u, "wgmma_fence", nullptr, nullptr, false, site);
  processor->async().warp().fenced = true;
}

void wgmma(float* d, unsigned columns, uint64_t a, uint64_t b, bool bfloat, bool a_across, bool b_across,
           Site site) {
  struct Lane {
    float* d;
    Product product;
    Site site;
  };
  if (Async::self().index / 32 * 32 + 32 > processor->size()) fail(site, "wgmma: half a warp");
  if (!processor->async().warp().fenced) fail(site, "wgmma: no wgmma_fence before it");
  for (const uint64_t matrix : {a, b}) {
    if (matrix >> 62 != 1 || (matrix >> 49 & 7) != 0)
      fail(site, "wgmma: the emulation knows matrices with the 128-byte swizzle only");
    const size_t start = (matrix & 0x3FFF) * 16, between = (matrix >> 32 & 0x3FFF) * 16;
    if (start % 1024 > 96 || between % 1024 != 0)
      fail(site, "wgmma: a matrix that does not begin in the first row of an atom");
  }
  Lane mine{d, {{}, columns, 0, a, b, bfloat, {a_across, b_across}, 0, {}, {}, 0, 0}, site};
  const auto issue = [](void* const* lanes) {
    Async& async = processor->async();
    Warp& warp = async.warp();
    Lane& last = *static_cast<Lane*>(lanes[Async::self().index % 32]);
    Product& product = last.product;
    product.warp = Async::self().index / 32 % 4;
    product.group = warp.groups;
    product.thread = Async::self().index;
    ++warp.issued;
    const size_t count = product.columns / 2;
    for (unsigned lane = 0; lane < 32; ++lane) {
      const Lane& other = *static_cast<const Lane*>(lanes[lane]);
      if (other.product.a != product.a || other.product.b != product.b)
        fail(last.site, "wgmma: lanes bring different matrices");
      product.d[lane] = other.d;
      std::vector<float>& sums = warp.sums[other.d];
      if (sums.empty()) sums.assign(other.d, other.d + count);
      std::memset(other.d, 0xFF, count * sizeof(float));
    }
    const unsigned rows[2] = {16, product.columns};
    const uint64_t matrices[2] = {product.a, product.b};
    // Eight elements lie together: of a row, or across of a column.
    for (int m = 0; m < 2; ++m) {
      const unsigned row_step = product.across[m] ? 8 : 1, column_step = product.across[m] ? 1 : 8;
      for (unsigned r = 0; r < rows[m]; r += row_step)
        for (unsigned c = 0; c < 16; c += column_step) {
          const unsigned row = r + (m == 0 ? 16 * product.warp : 0);
          const char* const from = async.element(matrices[m], product.across[m], row, c);
          check_shared(from, 16, "wgmma", last.site);
          product.ticket = race::read_beside(from, 16, nullptr);
        }
    }
    if (async.now()) async.read(product);
    warp.products.push_back(std::move(product));
  };
  collective(~0u, "wgmma", &mine, issue, false, site);
}

void wgmma_commit(Site site) {
  collective(
      ~0u, "wgmma_commit", nullptr, [](void* const*) { ++processor->async().warp().groups; }, false, site);
}

void wgmma_wait(unsigned groups_left, Site site) {
  struct Wait {
    unsigned groups_left;
  } mine{groups_left};
  const auto wait = [](void* const* lanes) {
    Async& async = processor->async();
    Warp& warp = async.warp();
    const unsigned me = Async::self().index, left = static_cast<const Wait*>(lanes[me % 32])->groups_left;
    while (!warp.products.empty() && warp.products.front().group + left < warp.groups) {
      Product& product = warp.products.front();
      async.finish(warp, product);
      for (unsigned lane = 0; lane < 32; ++lane)
        race::copied_for((me & ~31u) + lane, product.thread, product.ticket);
      warp.products.pop_front();
    }
    // Accumulators that no product adds to any more.
    for (auto i = warp.sums.begin(); i != warp.sums.end();) {
      const bool under_way = std::any_of(warp.products.begin(), warp.products.end(), [&](const Product& p) {
        return std::find(p.d, p.d + 32, i->first) != p.d + 32;
      });
      if (!under_way) std::copy(i->second.begin(), i->second.end(), i->first);
      i = under_way ? std::next(i) : warp.sums.erase(i);
    }
    warp.fenced = false;
  };
  collective(~0u, "wgmma_wait", &mine, wait, false, site);
}

std::string Async::why_ends_badly() const {
  if (!copies.empty()) return "ends, while copies of tensors are under way";
  for (unsigned w = 0; w < kMaxThreads / 32; ++w) {
    if (!warps[w].products.empty()) return "ends, while products of a warpgroup are under way";
    if (warps[w].issued != warps[w / 4 * 4].issued)
      return "the warps of a warpgroup have not issued the same products";
  }
  return "";
}

// ---- what the processor asks ----------------------------------------------------------------------------

Async& Processor::async() {
  if (!async_) async_ = std::make_shared<Async>(*this);
  return *async_;
}
void Processor::begin_async() {
  if (async_) async_->begin_block();
}
bool Processor::late_copy() { return async_ && async_->late_copy(); }
std::string Processor::why_ends_badly() const { return async_ ? async_->why_ends_badly() : ""; }

}  // namespace simt
