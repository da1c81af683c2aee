// Runs CUDA blocks on the host, strictly: the threads of a block are fibers that meet at barriers and warp-wide
// instructions. Between these they run in a chosen order, and every access to shared memory is checked, so that a
// missing barrier, a read of bytes nobody wrote, and cp.async data used before they arrive are errors and not luck.
// Global memory and shared memory's ends are left to the address sanitizer: the runner allocates them to the byte.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace emulator {

constexpr int kWarp = 32;

struct Lane {  // what a thread brings to a warp-wide instruction, and takes from it
  const void* row;
  uint32_t a[4], b[2], matrices[4];
  float d[4];
  bool vote;
  uint32_t ballot;
};

// Who touched a byte of shared memory last, and when; time is counted in barriers.
struct Byte {
  static constexpr int kNobody = -1, kSeveral = -2, kSeveralOfWarp = -3;  // the latter minus the warp
  int writer = kNobody, reader = kNobody;
  uint32_t write_block = 0, write_warp = 0, read_block = 0, read_warp = 0;
  bool arriving = false;
};

class Block {
 public:
  static Block& now() {
    static Block block;
    return block;
  }

  int thread = 0;
  uint64_t index = 0;
  // 0: threads and blocks in order; 1: backwards; more: threads in random orders with this seed.
  int order = 0;

  void run(uint64_t number, int threads, size_t shared_bytes, const std::function<void()>& body) {
    index = number;
    body_ = &body;
    if (posix_memalign(reinterpret_cast<void**>(&shared_), 128, shared_bytes ? shared_bytes : 1)) fail("out of memory");
    std::memset(shared_, 0xFF, shared_bytes);
    bytes_.assign(shared_bytes, Byte{});
    if (threads % kWarp) fail("a block of incomplete warps");
    fibers_.resize(threads);
    warps_.assign(threads / kWarp, Group{kWarp});
    all_ = Group{threads};
    lanes_.resize(threads);
    for (Fiber& fiber : fibers_) start(fiber);
    std::vector<int> turns(threads);
    std::iota(turns.begin(), turns.end(), 0);
    if (order == 1) std::reverse(turns.begin(), turns.end());
    std::mt19937 random(order);
    for (int left = threads; left > 0;) {
      if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
      bool moved = false;
      for (const int turn : turns) {
        if (fibers_[turn].state != State::ready) continue;
        moved = true;
        thread = turn;
        swapcontext(&scheduler_, &fibers_[turn].context);
        if (fibers_[turn].state != State::done) continue;
        --left;
        if (!fibers_[turn].copies.empty()) fail("ended without waiting for its cp.async");
      }
      if (!moved) fail("threads wait for others that never come: a barrier that not all threads reach");
    }
    free(shared_);
  }

  unsigned char* shared() const { return shared_; }

  // __syncthreads and __syncwarp: what happened before is seen after.
  void sync_block() {
    meet(all_, "__syncthreads", [this] { ++all_.time; });
  }
  void sync_warp() {
    Group& warp = my_warp();
    meet(warp, "__syncwarp", [&warp] { ++warp.time; });
  }

  // All lanes of the warp bring their part; the last to come computes for all; each gets its own back.
  Lane together(const char* instruction, const Lane& mine, const std::function<void(Lane*)>& compute) {
    Lane* first = &lanes_[thread / kWarp * kWarp];
    lanes_[thread] = mine;
    meet(my_warp(), instruction, [&] { compute(first); });
    return lanes_[thread];
  }

  void check_read(const void* from, size_t count) {
    visit(from, count, "read", [this](Byte& byte) {
      if (byte.arriving) fail("reads shared memory that cp.async is still filling");
      if (byte.writer == Byte::kNobody) fail("reads shared memory that nobody has written");
      if (!before(byte.writer, byte.write_block, byte.write_warp)) fail("reads what another thread wrote, no barrier");
      note_reader(byte);
    });
  }

  void check_write(const void* to, size_t count, bool arriving = false) {
    visit(to, count, "write", [this, arriving](Byte& byte) {
      if (byte.arriving) fail("writes shared memory that cp.async is still filling");
      if (!before(byte.writer, byte.write_block, byte.write_warp)) fail("writes what another thread wrote, no barrier");
      if (!before(byte.reader, byte.read_block, byte.read_warp)) fail("writes what another thread reads, no barrier");
      byte.arriving = arriving;
      set_writer(byte);
    });
  }

  void copy_later(void* to, const void* from, bool copy) {
    check_write(to, 16, true);
    if (reinterpret_cast<uintptr_t>(from) % 16) fail("cp.async from an address that is not aligned to 16 bytes");
    fibers_[thread].copies.push_back({to, from, copy, fibers_[thread].commits});
  }
  void commit() { ++fibers_[thread].commits; }
  void wait(int pending) {
    Fiber& fiber = fibers_[thread];
    std::vector<Copy> left;
    for (const Copy& copy : fiber.copies) {
      if (copy.commit >= fiber.commits - pending) {
        left.push_back(copy);
        continue;
      }
      visit(copy.to, 16, "fill", [this](Byte& byte) {
        byte.arriving = false;
        set_writer(byte);
      });
      if (copy.copy) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    fiber.copies = std::move(left);
  }

  [[noreturn]] void fail(const char* why) {
    std::fprintf(stderr, "block %llu, thread %d: %s\n", static_cast<unsigned long long>(index), thread, why);
    std::_Exit(3);
  }

 private:
  enum class State { ready, waiting, done };
  struct Copy {
    void* to;
    const void* from;
    bool copy;
    int commit;
  };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    std::vector<Copy> copies;
    int commits;
  };
  struct Group {
    int size = 0, arrived = 0;
    uint32_t time = 1;
    const char* what = nullptr;
  };
  static constexpr size_t kStack = 256 * 1024;

  static void entry() {
    Block& block = now();
    (*block.body_)();
    block.fibers_[block.thread].state = State::done;
    swapcontext(&block.fibers_[block.thread].context, &block.scheduler_);
  }

  void start(Fiber& fiber) {
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.state = State::ready;
    fiber.copies.clear();
    fiber.commits = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::entry, 0);
  }

  template <typename Complete>
  void meet(Group& group, const char* what, Complete complete) {
    if (group.arrived > 0 && std::strcmp(group.what, what) != 0) fail("is not where the others of its group are");
    group.what = what;
    if (++group.arrived < group.size) {
      fibers_[thread].state = State::waiting;
      const int self = thread;
      swapcontext(&fibers_[self].context, &scheduler_);
      return;
    }
    complete();
    group.arrived = 0;
    const int first = &group == &all_ ? 0 : thread / kWarp * kWarp;
    for (int i = first; i < first + group.size; ++i) {
      if (fibers_[i].state == State::waiting) fibers_[i].state = State::ready;
    }
  }

  Group& my_warp() { return warps_[thread / kWarp]; }

  bool before(int who, uint32_t block_time, uint32_t warp_time) {
    if (who == Byte::kNobody || who == thread || block_time != all_.time) return true;
    const bool same_warp = who >= 0 ? who / kWarp == thread / kWarp : who == Byte::kSeveralOfWarp - thread / kWarp;
    return same_warp && warp_time != my_warp().time;
  }

  void note_reader(Byte& byte) {
    const int warp = thread / kWarp;
    if (byte.reader != Byte::kNobody && byte.reader != thread && byte.read_block == all_.time) {
      const bool same = byte.reader >= 0 ? byte.reader / kWarp == warp : byte.reader == Byte::kSeveralOfWarp - warp;
      byte.reader = same ? Byte::kSeveralOfWarp - warp : Byte::kSeveral;
    } else {
      byte.reader = thread;
    }
    byte.read_block = all_.time, byte.read_warp = my_warp().time;
  }

  void set_writer(Byte& byte) { byte.writer = thread, byte.write_block = all_.time, byte.write_warp = my_warp().time; }

  template <typename Visitor>
  void visit(const void* at, size_t count, const char* what, Visitor visitor) {
    const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(at) - shared_);
    if (offset + count > bytes_.size() || offset > bytes_.size()) {
      std::fprintf(stderr, "%s of %zu bytes at %zu of %zu\n", what, count, offset, bytes_.size());
      fail("leaves shared memory");
    }
    if (offset % count) fail("accesses shared memory at an address that is not aligned");
    for (size_t i = offset; i < offset + count; ++i) visitor(bytes_[i]);
  }

  const std::function<void()>* body_ = nullptr;
  ucontext_t scheduler_;
  unsigned char* shared_ = nullptr;
  std::vector<Byte> bytes_;
  std::vector<Fiber> fibers_;
  std::vector<Group> warps_;
  std::vector<Lane> lanes_;
  Group all_;
};

}  // namespace emulator
